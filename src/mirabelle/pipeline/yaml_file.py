"""YAML in: PyYAML's safe loader, with the numbers of YAML 1.2 and with limits on what a small file
can ask for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mirabelle.base.errors import RecipeError

LARGEST = 2**16  # bytes: PyYAML reads some 20 000 a second
MOST_NODES = 20_000  # with what aliases stand for: nine lines can stand for billions
DEEPEST = 20
LONGEST_NUMBER = 40  # characters: Python's conversion takes time with the square of their number


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes 1e-3 for text and the second of two equal keys for the only one."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count(node, 1, {})
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key is no text", key)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise _refused(f"the key {key.value!r} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _refused(why: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _count(node: yaml.Node, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The nodes below and with `node`, aliases written out, and the levels of them. known: those of
    nodes that were seen; one that is inside itself ends at the depth.
    """
    total, height = 1, 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise _refused(f"a number of {len(node.value)} characters", node)
    elif id(node) in known:
        total, height = known[id(node)]
    elif depth < DEEPEST:
        for part in node.value:
            for child in part if isinstance(part, tuple) else (part,):
                more, below = _count(child, depth + 1, known)
                total, height = total + more, max(height, below + 1)
                if total > MOST_NODES:
                    raise _refused(f"it holds more than {MOST_NODES} values", node)
        known[id(node)] = total, height
    if depth + height - 1 >= DEEPEST:
        raise _refused(f"nested {DEEPEST} levels deep or more", node)
    return total, height


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds. `RecipeError` says what is wrong and where, also for a file of more
    than `LARGEST` bytes, `MOST_NODES` values or `DEEPEST` levels.
    """
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise RecipeError(
                f"{path} has {path.stat().st_size} bytes; a recipe has at most {LARGEST}"
            )
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(f"there is no recipe at {path}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except RecipeError:
        raise
    except RecursionError:
        raise RecipeError(f"{path} is not YAML that is read: nested too deep") from None
    except Exception as error:  # PyYAML lets through what its conversions of values raise
        said = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {said or type(error).__name__}") from None
