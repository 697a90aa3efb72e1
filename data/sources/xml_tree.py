"""XML of foreign datasets, read without what XML can do to a reader.

Entities are refused when they are declared, so nothing can expand ("billion laughs") or load another
file, and elements lie at most `MAX_DEPTH` deep.
"""

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MAX_DEPTH = 32


class XmlError(ValueError):
    """Not XML, or XML that is refused."""


def parse_xml(content: bytes) -> Element:
    """The root element of a document.

    Raises:
        XmlError: if it is not well-formed, declares entities, or is nested too deeply.
    """
    builder, depth = TreeBuilder(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise XmlError(f"elements are nested more than {MAX_DEPTH} deep")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*declaration: object) -> None:
        raise XmlError(f"it declares the entity {str(declaration[0])[:40]!r}, which is refused")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, AssertionError, ValueError, LookupError) as error:
        if isinstance(error, XmlError):
            raise
        raise XmlError(f"not well-formed XML: {error}") from error
