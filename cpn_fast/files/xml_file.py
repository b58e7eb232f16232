"""XML from disk as a tree that knows its lines, without entities of its own, whatever its namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from cpn_fast.files.errors import DataError
from cpn_fast.files.regular import read_regular

_MAX_DEPTH = 100


class Node(Element):
    """An element and the line it begins on."""

    line: int = 0


class _Refused(Exception):
    pass


def read_xml(path: Path, what: str) -> Node:
    """The root element of an XML file. Names are given without their namespace.

    Args:
        path: the file.
        what: what was expected, for errors.

    Raises:
        DataError: if it cannot be read, is no XML, declares entities, or nests too deep.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror}); expected {what}") from None
    try:
        return _parse(data)
    except expat.ExpatError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not well-formed XML ({expat.ErrorString(error.code)}); expected {what}: is "
            "the file complete?"
        ) from None
    except _Refused as error:
        raise DataError(f"{path}{error}; expected {what}") from None
    except (LookupError, ValueError) as error:
        raise DataError(f"{path}, line 1: its encoding cannot be read ({error}); save it as UTF-8") from None


def _parse(data: bytes) -> Node:
    parser = expat.ParserCreate()
    builder = TreeBuilder(element_factory=Node)
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise _Refused(f", line {parser.CurrentLineNumber}: elements nested too deep")
        node: Any = builder.start(name.rpartition(":")[2], attributes)
        node.line = parser.CurrentLineNumber

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition(":")[2])

    def entity(*_: Any) -> None:
        raise _Refused(f", line {parser.CurrentLineNumber}: declares an entity, which no annotation needs")

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = entity
    parser.Parse(data, True)
    root: Any = builder.close()
    return root
