"""Asking a model that errs, stalls, refuses and talks nonsense: the real client, a server on loopback."""

import threading
import time
from email.utils import formatdate

import pytest
from fake_server import FakeServer, Script, Trouble
from langchain_core.messages import AIMessage, HumanMessage
from worlds import RuleModel

from ai_learning.chat_model import open_chat_model
from ai_learning.errors import InputError
from ai_learning.reflexion.calls import (
    Answer,
    Budget,
    BudgetError,
    Caller,
    ModelError,
    Retry,
    StoppedError,
    cut,
    retry_after,
)

QUICK = Retry(attempts=4, wait_s=0.01, timeout_s=1.0)


def ask(script: Script, retry: Retry = QUICK, stop: tuple[str, ...] = ()) -> tuple[Answer, FakeServer]:
    with FakeServer(script) as server:
        model = open_chat_model("fake", base_url=server.url)
        return Caller(Budget(), retry).ask(model, [HumanMessage("Hello")], stop), server


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Trouble(500, "{}"), "500"),
        (Trouble(503, "<html>busy</html>"), "503"),
        (Trouble(429, '{"error": {"message": "slow down"}}'), "429"),
        (Trouble(200, "<html>a proxy's page</html>"), "JSON"),
        (Trouble(200, ""), ""),
        (Trouble(200, '{"choices": [', promised=500), ""),
        (Trouble(200, "null"), ""),
        (Trouble(200, "[]"), ""),
        (Trouble(200, '"text"'), ""),
        (Trouble(200, '{"choices": []}'), ""),
        (Trouble(200, '{"choices": null}'), "choices"),
        (Trouble(200, '{"choices": [{"message": null}]}'), ""),
        (Trouble(200, '{"choices": [{"index": 0, "message": {"role": "assistant"}}]}'), "empty"),
        (Trouble(200, '{"error": {"message": "overloaded"}}'), ""),
        ("", "empty"),
        ("  \n ", "empty"),
    ],
)
def test_trouble_is_survived(trouble: Trouble | str, said: str) -> None:
    answer, server = ask(lambda messages, number: trouble if number == 0 else "fine")
    assert (answer.text, answer.attempts, len(server.requests)) == ("fine", 2, 2)
    assert said in answer.errors[0]


def test_a_silent_server_is_given_up_on() -> None:
    answer, _ = ask(
        lambda messages, number: Trouble(stall_s=3) if number == 0 else "fine", Retry(3, 0.01, 1, 0.3)
    )
    assert answer.text == "fine" and answer.seconds < 2
    assert "TimeoutError: no answer in 0.3 s" in answer.errors[0]


def test_a_server_that_trickles_is_given_up_on() -> None:
    trickle = Trouble(200, "{}", trickle_s=5)
    answer, _ = ask(lambda messages, number: trickle if number == 0 else "fine", Retry(3, 0.01, 1, 0.5))
    assert answer.text == "fine" and answer.seconds < 2


def test_nobody_there() -> None:
    model = open_chat_model("fake", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match="no answer in 2 attempts"):
        Caller(Budget(), Retry(2, 0.01)).ask(model, [HumanMessage("Hello")])


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_asking_again_does_not_change_is_asked_once(status: int) -> None:
    with FakeServer(lambda m, n: Trouble(status, '{"error": {"message": "no such model"}}')) as server:
        model = open_chat_model("fake", base_url=server.url)
        with pytest.raises(ModelError, match=f"{status}.*no such model"):
            Caller(Budget(), QUICK).ask(model, [HumanMessage("Hello")])
        assert len(server.requests) == 1


def test_it_gives_up_in_the_end() -> None:
    with FakeServer(lambda m, n: Trouble(500, "{}")) as server:
        model = open_chat_model("fake", base_url=server.url)
        with pytest.raises(ModelError, match=r"no answer in 4 attempts; the last: .*500") as caught:
            Caller(Budget(), QUICK).ask(model, [HumanMessage("Hello")])
        assert len(server.requests) == 4 == caught.value.attempts


def test_empty_answers_all_along_are_an_empty_answer() -> None:
    answer, server = ask(lambda messages, number: "")
    assert (answer.text, len(server.requests)) == ("", 2)


def test_the_server_says_how_long_to_wait() -> None:
    wait = Trouble(429, "{}", {"retry-after": "0.4"})
    answer, _ = ask(lambda messages, number: wait if number == 0 else "fine", Retry(3, 0.001))
    assert 0.4 <= answer.seconds < 2


def with_header(value: str) -> Exception:
    class Response:
        headers = {"retry-after": value}  # noqa: RUF012

    error = Exception()
    error.response = Response()  # type: ignore[attr-defined]
    return error


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after(with_header("2.5")) == 2.5
    assert retry_after(with_header("-3")) == 0.0
    assert 8 < (retry_after(with_header(formatdate(time.time() + 10, usegmt=True))) or 0) <= 10
    assert retry_after(with_header("soon")) is None
    assert retry_after(Exception()) is None
    assert Retry(longest_wait_s=5).wait(1, with_header("86400")) == 5


def test_waits_double_and_are_spread() -> None:
    retry = Retry(wait_s=1.0, longest_wait_s=10.0)
    for attempt, most in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10)):
        waits = [retry.wait(attempt, Exception()) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most


def test_stop_words_are_sent_and_also_cut_here() -> None:
    answer, server = ask(
        lambda messages, number: "Action: go\nObservation: I dreamt", stop=("\nObservation",)
    )
    assert answer.text == "Action: go"
    assert server.requests[0]["stop"] == ["\nObservation"]
    assert cut("abc", ["z", "c", "b"]) == "a"


def test_a_model_that_takes_no_stop_words_is_asked_without() -> None:
    def script(messages: list, number: int) -> Trouble | str:
        if "stop" in server.requests[number]:
            return Trouble(400, '{"error": {"message": "Unsupported parameter: stop"}}')
        return "one. two"

    with FakeServer(script) as server:
        model = open_chat_model("fake", base_url=server.url)
        caller = Caller(Budget(), QUICK)
        for _ in range(2):
            assert caller.ask(model, [HumanMessage("Hello")], [" two"]).text == "one."
        assert len(server.requests) == 3  # it is remembered


def test_what_was_used_is_counted() -> None:
    with FakeServer(lambda messages, number: Trouble(500, "{}") if number == 0 else "fine") as server:
        caller = Caller(Budget(price_in=1.0, price_out=2.0), QUICK)
        answer = caller.ask(open_chat_model("fake", base_url=server.url), [HumanMessage("Hello")])
    assert (answer.input_tokens, answer.output_tokens, answer.cost) == (10, 5, pytest.approx(20e-6))
    assert (caller.spent.calls, caller.spent.cost) == (2, pytest.approx(20e-6))
    estimated = Caller(Budget(), QUICK).ask(RuleModel(rule=lambda s, u: "x" * 40), [HumanMessage("y" * 400)])
    assert (estimated.input_tokens, estimated.output_tokens) == (100, 10)


def test_a_budget_is_never_overdrawn_by_many_threads() -> None:
    caller = Caller(Budget(max_calls=5), QUICK)
    model = RuleModel(rule=lambda s, u: "fine")
    refused = []

    def work() -> None:
        try:
            caller.ask(model, [HumanMessage("Hello")])
        except BudgetError:
            refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(model.calls), len(refused), caller.spent.calls) == (5, 15, 5)


def test_stopping_ends_waits_and_calls_at_once() -> None:
    for rule in (lambda s, u: time.sleep(30), lambda s, u: RuntimeError("busy")):
        caller = Caller(Budget(), Retry(attempts=3, wait_s=30))
        threading.Timer(0.2, caller.stop, ("enough",)).start()
        began = time.monotonic()
        with pytest.raises(StoppedError):
            caller.ask(RuleModel(rule=rule), [HumanMessage("Hello")])
        assert time.monotonic() - began < 5
        assert caller.why == "enough"


def test_content_in_blocks_is_read() -> None:
    class Blocks(RuleModel):
        def _generate(self, *args: object, **kwargs: object) -> object:
            result = super()._generate(*args, **kwargs)  # type: ignore[arg-type]
            blocks = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "fine"}]
            result.generations[0].message = AIMessage(content=blocks)
            return result

    assert Caller(Budget(), QUICK).ask(Blocks(rule=lambda s, u: ""), [HumanMessage("Hello")]).text == "fine"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(max_calls=-1), "max_calls=-1 must not be negative"),
        (lambda: Budget(max_cost=1.0), "needs price_in and price_out"),
        (lambda: Retry(attempts=0), "attempts=0"),
        (lambda: Budget(max_seconds=float("nan")), "max_seconds=nan must not be negative"),
        (lambda: Retry(timeout_s=0), "timeout_s=0"),
        (lambda: Retry(timeout_s=float("nan")), "timeout_s=nan"),
        (lambda: Retry(wait_s=-1), "wait_s=-1 must be a number of seconds, at least 0"),
        (lambda: Retry(wait_s=float("inf")), "wait_s=inf"),
        (lambda: Retry(longest_wait_s=-1), "longest_wait_s=-1"),
    ],
)
def test_bad_limits(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
