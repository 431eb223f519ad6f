"""Putting a folder on the hub, through huggingface_hub."""

from pathlib import Path

from ..errors import InputError


def check_name(name: str) -> None:
    """Refuse what cannot be a repository of a user or an organisation.

    Raises:
        InputError: not ``user/name``, in letters that the hub takes.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name!r} is no name on the hub: {reason}") from None
    if name.count("/") != 1:
        raise InputError(f"{name!r} is no name on the hub: give user/name")


def push_folder(folder: Path, name: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload every file of ``folder`` to the model repository ``name``, made if need be.

    The token comes from where huggingface_hub keeps it: ``HF_TOKEN``, or ``hf auth login``. What is there
    already with the same content is not sent again, so a broken-off push is repeated.

    Args:
        folder: what ``save_pretrained`` wrote.
        name: ``user/name``.
        private: of a repository that is new.
        revision: branch; the main one when ``None``.

    Returns:
        Where it is.

    Raises:
        InputError: no token, no rights, no connection; with the hub's reason.
    """
    from huggingface_hub import HfApi

    check_name(name)
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message="Upload model")
    except Exception as error:  # the hub's errors share no base class
        reason = " ".join(str(error).split())
        raise InputError(f"cannot push to {name}: {reason} (the files are in {folder})") from None
    return f"{api.endpoint}/{name}"
