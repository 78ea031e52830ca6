"""The command line: `mirabelle COMMAND`; the commands are in `COMMANDS`.

The overview needs no import. cyclopts and a command's module are imported when the command is
called.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mirabelle.base.errors import CertificateError, LimitError, MirabelleError, did_you_mean
from mirabelle.base.interruption import interruptible
from mirabelle.base.version import __version__

if TYPE_CHECKING:
    from cyclopts import App

# By name: where it is, what it does, an example.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "compress": (
        "compress:compress",
        "find the smallest network that holds your limits",
        "mirabelle compress net.onnx --data photos --accuracy-drop 0.005 --minutes 60",
    ),
    "run": (
        "recipes:run",
        "carry out a recipe and write its report",
        "mirabelle run examples/fashion.yaml --resume",
    ),
    "explain": (
        "networks:explain",
        "which channels live and die together, and what cannot be pruned",
        "mirabelle explain examples.fashion:resnet --input 1,1,28,28",
    ),
    "measure": (
        "networks:measure",
        "size, MACs, latency, memory and accuracy of a network or an exported file",
        "mirabelle measure out/model.onnx --data examples.fashion:data",
    ),
    "compare": (
        "compare:compare",
        "two runs, or two files or networks of any runtime, side by side",
        "mirabelle compare net.onnx out/openvino/model.xml --data photos",
    ),
    "init": (
        "start:init",
        "look at network and data, and write a commented recipe that runs",
        "mirabelle init net.onnx --data photos --size 224",
    ),
    "doctor": (
        "doctor:doctor",
        "what is installed, and what each runtime can do on this machine",
        "mirabelle doctor --check",
    ),
    "export": (
        "networks:export",
        "write a network as a file for a runtime",
        "mirabelle export examples.fashion:resnet --input 1,1,28,28 --runtime openvino",
    ),
    "verify": (
        "networks:verify",
        "compare an exported file with the quantized network it came from, layer by layer",
        "mirabelle verify examples.fashion:resnet --load q --file out/model.onnx "
        "--data examples.fashion:data",
    ),
    "prune": (
        "techniques:prune",
        "remove the least important channels of a network",
        "mirabelle prune timm:resnet18 --data photos --macs 0.5 --folder out",
    ),
    "factorize": (
        "techniques:factorize",
        "make two thin layers of each layer of low rank",
        "mirabelle factorize timm:vit_tiny_patch16_224 --data photos --macs 0.6 --folder out",
    ),
    "distill": (
        "techniques:distill",
        "train a network on what another says of the data",
        "mirabelle distill timm:resnet18 --teacher timm:resnet50 --data photos --folder out",
    ),
    "quantize": (
        "techniques:quantize",
        "make a network compute with integers, and verify it on the runtime",
        "mirabelle quantize net.onnx --data photos --size 224 --runtime openvino --folder out",
    ),
    "report": (
        "recipes:report",
        "write the HTML of a run's report again",
        "mirabelle report runs/fashion",
    ),
    "certify": (
        "recipes:certify",
        "write what proves a run's folder, or check it byte by byte",
        "mirabelle certify --check runs/fashion",
    ),
    "schema": (
        "recipes:schema",
        "print the JSON Schema of recipes, for editors",
        "mirabelle schema > recipe.schema.json",
    ),
    "setup-arm64": (
        "recipes:setup_arm64",
        "fetch and build what `measure --device arm64` needs, into the cache folder",
        "mirabelle setup-arm64 --runtimes onnxruntime mnn",
    ),
}
REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # module:callable
COMMON = ("--quiet", "-q", "--verbose", "-v", "--debug", "--json")


def overview() -> str:
    """The commands, for 80 columns."""
    lines = [
        "Usage: mirabelle COMMAND",
        "",
        "Takes a trained network and hands back one that fits a phone.",
        "",
        "Commands:",
    ]
    shown = {name: text for name, (_, text, _) in COMMANDS.items()}
    shown |= {"--help, -h": "show this, or a command's options", "--version": "show the version"}
    for name, text in shown.items():
        lines += textwrap.wrap(text, 80, initial_indent=f"  {name:<13}", subsequent_indent=" " * 15)
    return "\n".join(
        [*lines, "", "`mirabelle COMMAND --help` shows its options with defaults and an example."]
    )


def app() -> App:
    """The commands. What goes to a terminal is drawn; what is piped is plain text."""
    from cyclopts import App

    plain = not sys.stdout.isatty()
    top = App(
        name="mirabelle",
        version_flags=[],
        help_formatter="plain" if plain else "default",
        help_format="plaintext",
    )
    for name, (place, help_text, example) in COMMANDS.items():
        top.command(
            f"mirabelle.cli.{place}", name=name, help=help_text, help_epilogue=f"Example: {example}"
        )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 an error that the user can repair, 2 a wrong command line, 3 a limit
    was missed, 4 a folder is not as its certificate says, 130 interrupted, 143 ended by SIGTERM.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    name = next((t for t in tokens if t not in COMMON), "--help")
    before = tokens[: tokens.index(name)] if name in tokens else tokens
    tokens = [name, *tokens[len(before) + 1 :], *before]  # `mirabelle --debug run` is allowed
    if name in ("--help", "-h", "--version"):
        print(f"mirabelle {__version__}" if name == "--version" else overview())
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        return _wrong(f"there is no {what} {name!r}{did_you_mean(name, COMMANDS)}")
    try:
        with interruptible():
            return _called(name, tokens)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last finished step", file=sys.stderr)
        return 130


def _called(name: str, tokens: Sequence[str]) -> int:
    from cyclopts import CycloptsError

    if name == "run" or any(REFERENCE.fullmatch(t.rpartition("=")[2]) for t in tokens):
        _reach_modules()
    try:
        command, bound, _ = app().parse_args(tokens, exit_on_error=False, print_error=False)
        return _carried_out(lambda: command(*bound.args, **bound.kwargs), bound)
    except CycloptsError as error:
        said = " ".join(str(error).split()).rstrip(".")
        return _wrong(f"{said}; see `mirabelle {name} --help`")


def _reach_modules() -> None:
    """`module:callable` may name modules of the folder that the command is called in.

    Only where one is named: other commands run nothing that lies there. The folder comes last, so
    that a file in it never takes the place of an installed package, such as an `onnxruntime.py`.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _wrong(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _carried_out(command: Callable[[], Any], bound: inspect.BoundArguments) -> int:
    common = bound.arguments.get("common")
    try:
        with _silence() if common is not None and common.quiet else _plain_warnings():
            return command() or 0
    except LimitError as error:
        print(f"limit missed: {error}", file=sys.stderr)
        return 3
    except CertificateError as error:
        print(f"not as certified: {error}", file=sys.stderr)
        return 4
    except (MirabelleError, OSError) as error:
        if common is not None and common.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are a line, without the place in the code that a log would want."""
    from mirabelle.base import progress

    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if issubclass(category, UserWarning):
                progress.console.print(f"warning: {message}", style="yellow")
            else:
                before(message, category, *place, **more)

        warnings.showwarning = show
        yield


@contextmanager
def _silence() -> Iterator[None]:
    """No progress, no warnings; errors and results stay."""
    from mirabelle.base import progress

    before = progress.console.quiet
    with progress.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        progress.console.quiet = True
        try:
            yield
        finally:
            progress.console.quiet = before
