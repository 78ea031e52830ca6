"""`python watched.py RUNTIME FOLDER [SECONDS]`: exports a float and a quantized network for a
runtime and runs them, under watch; prints the programs that were started.

SECONDS: how long it then goes on under watch, for what works in the background.

The kernel kills this process, and any that it starts, at the first socket of the internet (Linux):
native code is watched as well.
"""

from __future__ import annotations

import ctypes
import json
import platform
import struct
import sys
import time

INTERNET = (2, 10)  # AF_INET, AF_INET6
SOCKET = {
    "x86_64": (0xC000003E, 41),
    "aarch64": (0xC00000B7, 198),
}  # the architecture's number, its number of socket()
started: list[list[str]] = []


def forbid_internet() -> None:
    """A seccomp filter for this process, its threads to come and its children; it cannot be taken
    off.
    """
    architecture, number = SOCKET[platform.machine()]
    allow, kill = 0x7FFF0000, 0x80000000
    load, equal, give = 0x20, 0x15, 0x06  # of 32 bits at an offset | jump | return
    lines = [
        (load, 0, 0, 4),
        (equal, 0, 6, architecture),
        (load, 0, 0, 0),
        (equal, 0, 4, number),
        (load, 0, 0, 16),
        (equal, 1, 0, INTERNET[0]),
        (equal, 0, 1, INTERNET[1]),
        (give, 0, 0, kill),
        (give, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(lines), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


def hook(event: str, arguments: tuple) -> None:
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"):
        words = arguments[1] if event != "os.system" else arguments[0]
        words = [words] if isinstance(words, (str, bytes)) else list(words or [arguments[0]])
        started.append([w.decode() if isinstance(w, bytes) else str(w) for w in words])


def work(runtime: str, folder: str, seconds: str = "0") -> None:
    import mirabelle as mb
    from mirabelle.quantization import quantize
    from mirabelle.runtimes import RUNTIMES
    from tests.quantized_networks import batches, build

    network, data = build("depthwise"), batches(count=1)
    models = {"float": network}
    if RUNTIMES[runtime].int8:
        models["int8"] = quantize(network, data, target="symmetric")
    for name, model in models.items():
        artifact = mb.export(model, f"{folder}/{name}", runtime=runtime, inputs=data[0][:1])
        artifact(data[0][:1].numpy())
        if RUNTIMES[runtime].profile is not None:
            artifact.profile(data[0][:1].numpy(), runs=1)
    _ = artifact.version, artifact.bytes
    time.sleep(float(seconds))


if __name__ == "__main__":
    forbid_internet()
    sys.addaudithook(hook)
    if sys.argv[1] == "socket":  # for the test of the watch itself
        import socket

        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    work(*sys.argv[1:])
    print(json.dumps(started))
