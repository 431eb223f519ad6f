"""Programs that a sandbox must survive: what they try, and how one sees that they failed.

Each prints ``ESCAPED`` where it got what it must not get, or tries to be judged as passing. The tests of a
forgery expect 4 from ``f(2)``, which no forger is told.
"""

TESTS = "assert f(2) == 4\nassert f(3) == 9, 'second'"
HUMANEVAL_TESTS = (
    "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(candidate(3) - 9) < 1e-6\n"
)
TOLERANT_TESTS = "assert abs(f(2) - 4) < 1e-6\nassert abs(f(3) - 9) < 1e-6"
UNITTEST_TESTS = """
import unittest
class T(unittest.TestCase):
    def test_f(self):
        self.assertEqual(f(2), 4)
        self.assertAlmostEqual(f(3), 9.0)
"""

_ALWAYS = """
class Always(%s):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __sub__(self, other): return self
    def __rsub__(self, other): return self
    def __add__(self, other): return self
    __radd__ = __mul__ = __rmul__ = __add__
    def __abs__(self): return 0
    def __round__(self, n=None): return 0
    def __float__(self): return 0.0
    def __int__(self): return 0
    def __index__(self): return 0
    def __bool__(self): return True
    def __hash__(self): return 0
    def __contains__(self, other): return True
def f(x): return Always()
"""

FORGERIES = {
    "sys.exit(0)": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit(0) at once": "import sys\nsys.exit(0)\ndef f(x): return x * x",
    "os._exit(0)": "import os\ndef f(x): os._exit(0)",
    "os._exit(0) at once": "import os; os._exit(0)",
    "SystemExit raised": "def f(x): raise SystemExit(0)",
    "printing markers": """
import json, sys
def f(x):
    for text in ("PASSED", "OK", "passed", json.dumps({"passed": True}), "All tests passed", "Ran 1 test\\n\\nOK"):
        print(text); print(text, file=sys.stderr)
    return 0
""",
    "an object that equals everything": _ALWAYS % "",
    "an int that equals everything": _ALWAYS % "int",
    "a float that equals everything": _ALWAYS % "float",
    "a string that equals everything": _ALWAYS % "str",
    "a tuple that equals everything": _ALWAYS % "tuple",
    "a list that equals everything": _ALWAYS % "list",
    "a dict that equals everything": _ALWAYS % "dict",
    "a set that equals everything": _ALWAYS % "set",
    "bytes that equal everything": _ALWAYS % "bytes",
    "a deque that equals everything": "from collections import deque\n" + _ALWAYS % "deque",
    "a metaclass that equals everything": """
class Meta(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return 0
    def __instancecheck__(cls, x): return True
    def __sub__(cls, other): return cls
    def __abs__(cls): return 0
class Always(metaclass=Meta): pass
def f(x): return Always
""",
    "a class that lies about its class": """
class Liar:
    __class__ = int
    def __eq__(self, other): return True
    def __instancecheck__(self, x): return True
def f(x): return Liar()
""",
    "patched AssertionError": """
import builtins
class Quiet(Exception):
    def __new__(cls, *a): raise SystemExit(0)
builtins.AssertionError = Quiet
def f(x): return 0
""",
    "patched builtins": """
import builtins
for name in ("abs", "len", "isinstance", "print", "repr", "all", "any", "bool", "int", "compile", "exec", "eval"):
    setattr(builtins, name, lambda *a, **k: True)
def f(x): return 0
""",
    "overwritten test functions": """
import builtins, sys, unittest
def check(candidate): pass
builtins.check = check
sys.modules["__main__"].__dict__["check"] = check
unittest.TestCase.assertEqual = unittest.TestCase.assertAlmostEqual = lambda *a, **k: None
unittest.TestCase.run = lambda *a, **k: None
unittest.main = lambda *a, **k: None
def __failed__(*a): return SystemExit(0)
def __at__(n): raise SystemExit(0)
def f(x): return 0
""",
    "every frame searched for the tests": """
import sys, gc
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, str) and "assert" in value and "== 4" in value:
                return 4 if x == 2 else 9
            if isinstance(value, dict) and "passed" in value:
                value["passed"] = True
        frame = frame.f_back
    return 0
""",
    "every object searched for the tests": """
import gc
def f(x):
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            for key, value in list(thing.items()):
                if isinstance(value, str) and "== 9" in value and "f(3)" in value:
                    return 4 if x == 2 else 9
                if key == "passed":
                    thing[key] = True
    return 0
""",
    "own memory searched for the tests": """
import ctypes
def f(x):
    start = id(object()) & ~0xFFFFFF
    needle = b"f(3) =" + b"= 9"
    try:
        data = open("/proc/self/mem", "rb")
    except OSError:
        data = None
    if data:
        for line in open("/proc/self/maps"):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            try:
                data.seek(low)
                if needle in data.read(high - low): return 4 if x == 2 else 9
            except (OSError, ValueError, OverflowError): pass
    return 0
""",
    "every descriptor written to": """
import os, json, struct
def f(x):
    verdicts = [json.dumps(v).encode() for v in ({"passed": True, "error": "", "exit_code": 0}, {"passed": True})]
    for fd in range(3, 256):
        for body in verdicts:
            for data in (body, body + b"\\n", struct.pack(">I", len(body)) + body):
                try: os.write(fd, data)
                except OSError: pass
    return 0
""",
    "messages on the channel": """
import gc, json, os, socket, struct
def f(x):
    for fd in range(3, 64):
        for message in (["done", None, [], None, {}], ["done", 4, [], None, {}], {"passed": True}, "passed", [], ["do"],
                        ["done", ["like", "int", 4, 1, "x"], [], None, {}], {"asserts": []}, {"setup": "x"}):
            body = json.dumps(message).encode()
            try: os.write(fd, struct.pack(">I", len(body)) + body)
            except OSError: pass
    return 0
""",
    "requests to the judge": """
import gc
def f(x):
    channels = [o for o in gc.get_objects() if type(o).__name__ == "Worker"]
    for worker in channels:
        from_module = type(worker).__mro__[1].__init__.__globals__
        send, receive = from_module["send"], from_module["receive"]
        for operation, target, arguments in (
            ("getattr", ["yours", 0], ["__globals__"]), ("call", ["type", "type"], ["x"]),
            ("call", ["exception", "SystemExit"], [0]), ("call", ["function", "os", "_exit"], [0]),
            ("call", ["yours", 0], []), ("getattr", ["module", "os"], ["_exit"]), ("setattr", ["module", "builtins"], ["abs", 0]),
        ):
            send(worker.channel, ["do", operation, target, ["list", 0, arguments], ["dict", 1, []], {}])
            answer = receive(worker.channel)
            if answer[3] is None:
                print("ESCAPED", operation, target, answer)
    return 0
""",
    "descriptors closed": "import os\nos.closerange(0, 4096)\ndef f(x): return 4",
    "descriptors duplicated": "import os\ndef f(x):\n    for a in range(16):\n        for b in range(3, 16):\n            try: os.dup2(a, b)\n            except OSError: pass\n    return 4",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "a thread that exits": """
import threading, os, time
threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)), daemon=True).start()
def f(x):
    time.sleep(1)
    return 0
""",
    "__del__": "import os\nclass D:\n    def __del__(self): os._exit(0)\ndef f(x):\n    D()\n    return 0",
    "settrace": """
import sys
def trace(frame, event, arg):
    frame.f_locals.update(passed=True, error="")
    return trace
sys.settrace(trace); sys.setprofile(lambda *a: None)
def f(x): return 0
""",
    "excepthook": "import sys, os\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\ndef f(x): raise ValueError",
    "an exception whose text raises": """
class E(BaseException):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
    def __init_subclass__(cls): raise SystemExit(0)
def f(x): raise E
""",
    "raising what ends loops": "def f(x): raise StopIteration(4)",
    "GeneratorExit": "def f(x): raise GeneratorExit",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "SkipTest": "import unittest\ndef f(x): raise unittest.SkipTest('no')",
    "a signal to oneself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "fork": """
import os
def f(x):
    if os.fork() == 0:
        return 0
    return 4 if x == 2 else 8
""",
    "the judge killed": """
import os, signal
def f(x):
    for pid in (1, os.getppid()):
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1):
            try: os.kill(pid, number)
            except OSError: pass
    return 0
""",
    "an iterator that holds everything": """
class Everything(list):
    def __iter__(self): return iter([4])
    def __contains__(self, x): return True
    def __eq__(self, x): return True
def f(x): return Everything()
""",
    "modules replaced": """
import sys, types
fake = types.ModuleType("unittest")
class TestCase:
    def __init_subclass__(cls): pass
fake.TestCase = TestCase; fake.main = lambda: None
sys.modules["unittest"] = fake
def f(x): return 0
""",
    "the worker's own functions patched": """
import gc, sys, json
for name, module in list(sys.modules.items()):
    if name.startswith("isolation"):
        for key, value in list(vars(module).items()):
            if callable(value) and not isinstance(value, type):
                try: setattr(module, key, lambda *a, **k: {"passed": True})
                except Exception: pass
json.dumps = lambda *a, **k: '{"passed": true}'
def f(x): return 0
""",
}

ATTACKS: dict[str, str] = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb of threads": """
import threading, time
try:
    for _ in range(100000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("ESCAPED")
except (RuntimeError, MemoryError) as e: print("held", e)
""",
    "memory bomb": "x = []\ntry:\n    while True: x.append(bytearray(10**7))\nexcept MemoryError:\n    n = len(x); x = None; print('held', n)\n    assert n < 60",
    "memory bomb by forking": """
import os, time
for _ in range(40):
    try:
        if os.fork() == 0:
            x = [bytearray(b"x" * 10**7) for _ in range(15)]
            time.sleep(60)
    except OSError: break
time.sleep(60)
""",
    "huge string": "x = 'a' * 10**12",
    "huge int": "x = 10 ** 10 ** 10",
    "huge int power": "x = 1 << (1 << 40)",
    "endless loop": "while True: pass",
    "endless sleep": "import time; time.sleep(10**6)",
    "endless loop that ignores signals": """
import signal
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "regular expression without end": "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')",
    "deep recursion": "def g(): return g()\ntry: g()\nexcept RecursionError: print('held')",
    "deep recursion without a limit": "import sys; sys.setrecursionlimit(2**31 - 1)\ndef g(n): return g(n + 1) + 1\ng(0)",
    "deep nesting": "exec('(' * 100000 + ')' * 100000)",
    "disk filler": """
written = 0
try:
    for n in range(100):
        with open(f"file{n}", "wb") as file:
            for _ in range(15): written += file.write(b"x" * 2**20)
    print("ESCAPED")
except OSError as e: print("held", e, written >> 20)
""",
    "one large file": "open('x', 'wb').write(b'x' * (20 << 20))\nprint('ESCAPED')",
    "sparse file": "f = open('x', 'wb'); f.truncate(1 << 40)\nprint('ESCAPED')",
    "100k files": """
try:
    for n in range(100000): open(f"f{n}", "w").close()
    print("ESCAPED")
except OSError as e: print("held", n, e)
""",
    "deep folders": """
import os
try:
    for n in range(1200):
        os.mkdir("d"); os.chdir("d")
except OSError as e: print("held", n, e)
""",
    "closed folders": """
import os
for mode in (0o000, 0o300, 0o100, 0o555):
    os.mkdir(f"closed{mode}", mode)
    try:
        for n in range(40): open(f"closed{mode}/{n}", "wb").write(b"x" * 10**7)
        print("ESCAPED" if n == 39 and mode == 0 and os.getuid() else "held")
    except OSError as e: print("held", e)
""",
    "folders exchanged for links": """
import os, threading, time
os.mkdir("a"); os.symlink("%(home)s", "b")
end = time.monotonic() + 0.4
while time.monotonic() < end:
    os.rename("a", "c"); os.rename("b", "a"); os.rename("a", "b"); os.rename("c", "a")
""",
    "memory outside of processes": """
import os, mmap
try:
    fd = os.memfd_create("x")
    for _ in range(100): os.write(fd, b"x" * (10 << 20))
    print("ESCAPED")
except OSError as e: print("held", e)
""",
    "1 GB of output": "import os\nfor _ in range(1000): os.write(1, b'x' * 10**6)\nprint('ESCAPED')",
    "1 GB of errors": "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
    "output after output": "import os\nos.dup2(1, 2)\nwhile True: os.write(2, b'y' * 10**5)",
    "socket to loopback": """
import socket, os
port = %(port)d
for family, address in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port)), (socket.AF_INET, ("10.0.0.1", 53))):
    try:
        s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(1); s.connect(address); print("ESCAPED", address)
    except OSError as e: print("held", e)
try: print("ESCAPED", socket.create_connection(("localhost", port), 1))
except OSError as e: print("held", e)
""",
    "other sockets": """
import socket
for family, kind, proto in ((socket.AF_PACKET, socket.SOCK_RAW, 3), (socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_NETLINK, socket.SOCK_RAW, 0),
                     (socket.AF_VSOCK, socket.SOCK_STREAM, 0), (38, socket.SOCK_SEQPACKET, 0), (socket.AF_BLUETOOTH, socket.SOCK_RAW, 1)):
    try: socket.socket(family, kind, proto); print("ESCAPED", family)
    except OSError as e: print("held", e)
""",
    "abstract unix socket": """
import socket
try:
    s = socket.socket(socket.AF_UNIX); s.connect("\\0%(abstract)s"); print("ESCAPED")
except OSError as e: print("held", e)
""",
    "a server": """
import socket
try:
    s = socket.socket(); s.bind(("0.0.0.0", 0)); s.listen(); print("ESCAPED")
except OSError as e: print("held", e)
""",
    "reading home": """
import os, glob
from pathlib import Path
for path in ("%(secret)s", "/root/.bashrc", "/root/.ssh", "/home", "/etc/shadow", "/etc/passwd", "/etc/hostname", "/work", "%(repository)s"):
    try:
        print("ESCAPED", path, os.listdir(path) if os.path.isdir(path) else open(path).read(20))
    except OSError as e: print("held", e)
if os.path.samefile(os.path.expanduser("~"), ".") is False: print("ESCAPED")
print(os.listdir("."), glob.glob("../*/*secret*"))
if "TOP" in open(0).read(): print("ESCAPED")
""",
    "reading the environment": """
import os, ctypes
if "TOP" in str(dict(os.environ)) + str(os.environb): print("ESCAPED")
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
n = 0
while environ[n]:
    if b"TOP" in environ[n]: print("ESCAPED", environ[n])
    n += 1
print(sorted(os.environ))
""",
    "/proc": """
import os
for pid in ("self", "1", str(os.getppid()), "%(parent)d", "thread-self"):
    for name in ("environ", "mem", "maps", "cmdline", "cwd/..", "root/etc/passwd", "fd", "status", "root/work"):
        path = f"/proc/{pid}/{name}"
        try:
            print("ESCAPED", path, os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(10))
        except OSError: pass
for path in ("/proc", "/sys", "/sys/fs/cgroup", "/dev/shm/..", "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/run"):
    try:
        names = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
        if path != "/dev/shm/.." or "proc" in names: print("ESCAPED", path, names)
    except OSError: pass
""",
    "killing the parent": """
import os, signal
for pid in (%(parent)d, os.getppid(), -1, 1):
    for number in (signal.SIGKILL, signal.SIGTERM):
        try: os.kill(pid, number); print("sent", pid)
        except OSError as e: print("held", e)
""",
    "signals by other calls": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
parent = %(parent)d
print(libc.syscall(234, parent, parent, 9), libc.syscall(200, parent, 9), libc.syscall(129, parent, 9, ctypes.create_string_buffer(128)))
fd = libc.syscall(434, parent, 0)
if fd >= 0: print(libc.syscall(424, fd, 9, 0, 0))
""",
    "limits of the parent": """
import resource, os
try: resource.prlimit(%(parent)d, resource.RLIMIT_NOFILE, (0, 0)); print("ESCAPED")
except OSError as e: print("held", e)
try: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2); print("ESCAPED")
except (OSError, ValueError) as e: print("held", e)
try: os.sched_setaffinity(%(parent)d, {0}); print("ESCAPED")
except OSError as e: print("held", e)
""",
    "setsid survivor": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(%(marker)d)
    os._exit(0)
print("left")
""",
    "double forks that ignore everything": """
import os, signal, time
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        for fd in range(64):
            try: os.close(fd)
            except OSError: pass
        if os.fork() == 0:
            while True: time.sleep(%(marker)d)
        os._exit(0)
""",
    "a survivor that keeps forking": """
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        if os.fork(): os._exit(0)
        time.sleep(0.001)
""",
    "subprocesses": """
import subprocess, sys
for command in (["sh", "-c", "cat %(secret)s; ls /root /home /work"], [sys.executable, "-c", "print(open('%(secret)s').read())"],
                ["ps", "aux"], ["mount"], ["su", "-c", "id"], ["curl", "http://127.0.0.1:%(port)d"]):
    try: print(subprocess.run(command, capture_output=True, text=True, timeout=2).stdout[:200])
    except (OSError, subprocess.SubprocessError) as e: print("held", type(e).__name__)
subprocess.Popen(["sleep", "%(marker)d"], start_new_session=True)
""",
    "symlinks and hard links out": """
import os
for target in ("%(secret)s", "/etc/passwd", "/root/.bashrc"):
    try:
        os.symlink(target, "link"); print("ESCAPED", open("link").read(10))
    except OSError as e: print("held", e)
    try: os.unlink("link")
    except OSError: pass
    try: os.link(target, "hard"); print("ESCAPED", open("hard").read(10))
    except OSError as e: print("held", e)
""",
    "writing outside": """
import os, sys, tempfile
for path in ("%(victim)s", "/etc/x", "/usr/x", "/x", "/dev/x", "/var/tmp/x", "/root/x", "/srv/x", os.path.dirname(os.__file__) + "/x.py", os.__file__, sys.executable):
    for flags in (os.O_WRONLY | os.O_CREAT, os.O_RDWR, os.O_WRONLY | os.O_TRUNC | os.O_APPEND):
        try: os.close(os.open(path, flags)); print("ESCAPED", path)
        except OSError: pass
    for change in (os.unlink, os.rmdir, lambda p: os.truncate(p, 0), lambda p: os.rename(p, p + "2"), lambda p: os.chmod(p, 0o777)):
        try: change(path); print("ESCAPED", path, change)
        except OSError: pass
""",
    "set-user-id": """
import os, shutil, stat
try:
    shutil.copyfile("/bin/sh", "sh"); os.chmod("sh", 0o6777); print(os.system("./sh -c 'id -u'"))
except OSError as e: print("held", e)
for call in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        call(); print("ESCAPED", os.getuid())
    except OSError as e: print("held", e)
if 0 in (os.getuid(), os.geteuid(), os.getgid()): print("ESCAPED root")
""",
    "mounts, namespaces, chroot": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in (("mount", (b"proc", b"/tmp", b"proc", 0, None)), ("umount2", (b"/", 2)), ("unshare", (0x10000000,)), ("unshare", (0x20000,)),
                        ("chroot", (b".",)), ("setns", (0, 0)), ("ptrace", (16, 1, 0, 0)), ("sethostname", (b"x", 1))):
    if getattr(libc, name)(*arguments) == 0: print("ESCAPED", name)
for number in (425, 321, 298, 323, 250, 319, 447, 29, 310, 438, 428, 430, 303):
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) >= 0: print("ESCAPED", number)
if libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) > 0: print("ESCAPED clone")
buf = ctypes.create_string_buffer(88)
buf[0:8] = (0x10000000).to_bytes(8, "little")
if libc.syscall(435, buf, 88) >= 0: print("ESCAPED clone3")
""",
    "ctypes crash": "import ctypes; ctypes.memset(0, 1, 10**6)",
    "machine code": """
import mmap, ctypes
m = mmap.mmap(-1, 4096, prot=7)
m.write(bytes([0x6a, 0x00, 0x5f, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]))
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()
""",
    "32-bit system calls": """
import mmap, ctypes
m = mmap.mmap(-1, 4096, prot=7)
m.write(bytes([0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3]))
print("ESCAPED", ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())
""",
    "descriptors": """
import os, stat
for fd in range(256):
    try: s = os.fstat(fd)
    except OSError: continue
    if stat.S_ISDIR(s.st_mode) or stat.S_ISREG(s.st_mode): print("ESCAPED", fd, s)
    for name in ("..", "etc/passwd"):
        try: print("ESCAPED", os.open(name, os.O_RDONLY, dir_fd=fd))
        except OSError: pass
""",
    "inotify and other watchers": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init()
print(libc.inotify_add_watch(fd, b"%(secret)s", 0xFFF))
if libc.inotify_add_watch(fd, b"/etc/passwd", 0xFFF) >= 0 and %(namespaces)d: print("ESCAPED")
""",
    "waiting for input": "print('held' if open(0).read() == '' else 'ESCAPED')\ntry: input()\nexcept EOFError: print('held')",
    "terminal": "import fcntl, os\ntry: os.open('/dev/tty', os.O_RDWR); print('ESCAPED')\nexcept OSError: print('held')",
    "stopping itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "stopping its group": "import os, signal; os.kill(0, signal.SIGSTOP)",
    "priority": "import os\ntry: os.nice(-20); print('ESCAPED')\nexcept OSError: print('held')",
    "shared memory and semaphores": """
from multiprocessing import shared_memory
try:
    for n in range(100): shared_memory.SharedMemory(create=True, size=10**7).buf[:] = b"x" * 10**7
    print("ESCAPED")
except (OSError, ImportError) as e: print("held", type(e).__name__)
""",
    "sockets full of descriptors": """
import socket, os
pairs = []
try:
    for _ in range(1000): pairs.append(socket.socketpair())
    print("ESCAPED")
except OSError as e: print("held", e)
""",
    "a hash that collides": "print(len({(1 << 61) * n for n in range(30000)}))",
    "a zip bomb": "import zlib\nd = zlib.decompressobj(); s = zlib.compress(b'0' * 10**8)\ntry: d.decompress(s * 100); x = [zlib.decompress(s) for _ in range(100)]; print('ESCAPED')\nexcept MemoryError: print('held')",
}

# Answers that no honest worker gives: the code takes over the conversation with the judge.
_SPEAK = """
import gc, json, os, socket, struct
worker = next(o for o in gc.get_objects() if type(o).__name__ == "Worker")
channel = worker.channel
def send(message):
    body = json.dumps(message).encode()
    channel.sendall(struct.pack(">I", len(body)) + body)
def receive():
    length, = struct.unpack(">I", channel.recv(4, socket.MSG_WAITALL))
    return json.loads(channel.recv(length, socket.MSG_WAITALL))
"""
FORGERIES |= {
    "other names than were asked for": _SPEAK
    + """
names = ["f", "__builtins__", "__at__", "__failed__", "unittest", "abs", "check", "__name__", "T", "candidate"]
send(["done", ["dict", 0, [[name, ["mine", 7, "x", "object"]] for name in names]], [], None, {}])
while True:
    operation = receive()[1]
    send(["done", {"bool": True, "eq": True, "hash": 0, "repr": "", "str": "", "len": 1}.get(operation, ["mine", 7, "x", "object"]), [], None, {}])
""",
    "a list that is nothing of the sort": _SPEAK
    + """
send(["done", ["dict", 0, [["f", ["mine", 7, "x", "object"]]]], [], None, {}])
names = ["__eq__", "__class__", "__getattribute__", "__reduce__", "__del__", "__init_subclass__", "__bool__", "__sub__", "__rsub__"]
values = [["mine", 8, "x", "object"], 4, ["tuple", []], ["set", 0, []], True, ["list", 0, [["mine", 8, "x", "object"]]]]
while True:
    operation = receive()[1]
    if operation == "call":
        send(["done", ["like", "list", None, 9, "__class__", names], [], None, {}])
    else:
        values.append(values.pop(0))
        send(["done", True if operation in ("eq", "bool") else values[0], [], None, {}])
""",
    "names changed behind the tests": _SPEAK
    + """
send(["done", ["dict", 0, [["f", ["mine", 7, "x", "object"]]]], [], None, {}])
while True:
    receive()
    send(["done", 0, [], None, {"f": 4, "candidate": 4, "self": 4, "abs": 4, "__failed__": 4, "": "text"}])
""",
    "exceptions that end the tests": _SPEAK
    + """
send(["done", ["dict", 0, [["f", ["mine", 7, "x", "object"]]]], [], None, {}])
for kind in (["exception", "SystemExit"], ["exception", "KeyboardInterrupt"], ["type", "int"], ["yours", 0], ["mine", 9, "SkipTest", "exception", [["exception", "Exception"]]]):
    receive()
    send(["done", None, [], [kind, [0], ""], {}])
""",
    "nonsense instead of a value": _SPEAK
    + """
send(["done", ["dict", 0, [["f", ["mine", 7, "x", "object"]]]], [], None, {}])
for value in (["library", "Fraction", [1, 0]], ["same", 99], ["like", "bool", True, 3, "b"], {}, [], [[]], ["tuple", 5], ["list", 0, ["list", 0, 1]]):
    receive()
    send(["done", value, [[0, 0], [1, "x"]], None, {}])
""",
}
FORGERIES["changing what the tests expect"] = """
expected = True
def f(x):
    global expected
    expected = 0
    return 0
"""
EXPECTED_TESTS = "expected = True\nassert f(2) == expected"

FORGERIES["other builtins for the tests"] = (
    _SPEAK
    + """
receive_all = {"getitem": ["mine", 8, "x", "object"], "call": 0, "bool": True, "lt": True}
send(["done", ["dict", 0, [["f", ["mine", 7, "x", "object"]], ["__builtins__", ["mine", 9, "x", "object"]]]], [], None, {}])
while True:
    send(["done", receive_all.get(receive()[1], 0), [], None, {}])
"""
)

# Given a function of the tests, the code tries what lies around it.
CURIOUS = """
import gc
def apply(function, value):
    worker = next(o for o in gc.get_objects() if type(o).__name__ == "Worker")
    for operation, arguments in (
        ("getattr", ["__globals__"]), ("getattr", ["__code__"]), ("getattr", ["__closure__"]), ("getattr", ["__self__"]),
        ("setattr", ["__code__", 1]), ("dir", []), ("repr", []), ("str", []), ("bool", []), ("getitem", ["expected"]),
    ):
        try:
            print("ESCAPED", operation, arguments, worker.request(operation, function, *arguments))
        except (PermissionError, AttributeError) as error:
            print("held", error)
    return function(value)
"""
CURIOUS_TESTS = """
expected = 9
assert apply(lambda x: x + expected, 1) == 10
class Box:
    def __init__(self): self.content, self._secret = 3, expected
    def get(self): return self.content
assert apply(lambda _: Box().get(), 0) == 3
"""

# A text that says one thing when it is looked at and is another: to reach a private attribute.
TWO_WORDS = """
import gc
class Two(str):
    def __str__(self): return "content"
    def startswith(self, prefix): return False
    def __eq__(self, other): return True
    def __hash__(self): return hash("__doc__")
def read(box):
    worker = next(o for o in gc.get_objects() if type(o).__name__ == "Worker")
    for target, name in ((box, "_secret"), (box, "__class__"), (box.get, "__globals__"), (box.get, "__self__")):
        for words in (Two(name), name):
            try: print("ESCAPED", worker.request("getattr", target, words))
            except (AttributeError, PermissionError, TypeError): print("held")
    return box.content
"""
TWO_WORDS_TESTS = """
class Box:
    def __init__(self): self.content, self._secret = 3, 9
    def get(self): return self.content
assert read(Box()) == 3
"""

# The tests write files, and find them as they were; modules beside them are never imported.
FILES = """
import os
def lines(path):
    with open(path) as file: return file.read().splitlines()
def change(path):
    folder = os.path.dirname(path)
    for act in (
        lambda: open(path, "w"), lambda: open(path, "a"), lambda: os.unlink(path), lambda: os.rename(path, "x"),
        lambda: open(folder + "/difflib.py", "w"), lambda: os.symlink("/etc/passwd", folder + "/link"),
    ):
        try: act(); print("ESCAPED")
        except OSError: print("held")
    with open("difflib.py", "w") as file: file.write("raise SystemExit")
    with open("own.txt", "w") as file: file.write("mine")
"""
FILES_TESTS = """
import os, tempfile
with open("data.txt", "w") as file: file.write("a\\nb\\n")
assert lines("data.txt") == ["a", "b"]
assert lines(os.path.abspath("data.txt")) == ["a", "b"]
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "deep.txt")
    with open(path, "w") as file: file.write("c")
    assert lines(path) == ["c"]
with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
    file.write("d")
    file.flush()
    assert lines(file.name) == ["d"]
change(os.path.abspath("data.txt"))
assert open("data.txt").read() == "a\\nb\\n"
assert os.listdir() == ["data.txt"]
import difflib
assert difflib.__file__ != os.path.abspath("difflib.py")
for path in ("/tmp/own.txt", "../work/own.txt"):
    try: open(path)
    except OSError: pass
    else: assert False, path
for path in ("/etc/x", "/x", "/tmp/x", "/var/tmp/x", "../x"):
    try: open(path, "w")
    except OSError: pass
    else: assert False, path
"""
