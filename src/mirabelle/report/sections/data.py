"""The data, and how pictures are brought to the network."""

from __future__ import annotations

from mirabelle.base.png import URI
from mirabelle.report.parts import listing, section, texts
from mirabelle.report.schema import Answers, Data, Report
from mirabelle.report.svg import element, escape
from mirabelle.report.units import number


def picture(uri: object, alt: str, class_: str | None = None) -> str:
    """An image that stands in the page itself; nothing for anything but a PNG file's data URI."""
    if not isinstance(uri, str) or not URI.fullmatch(uri):
        return ""
    return element("img", src=uri, alt=alt, class_=class_).removesuffix("</img>")


def data(report: Report) -> str:
    """What the data are, what preprocessing was taken and from where, whether that seems right, and
    a contact sheet. Nothing where the data are no pictures: their name is in the recipe.
    """
    found = report.data
    if not found.pictures:
        return ""
    rows = [("data", found.text), ("preprocessing", found.pictures)]
    body = listing([(k, str(v)) for k, v in rows if v])
    return section("The pictures", "", body, said(found.check), sheet(found))


def said(check: Answers) -> str:
    """What the float network answered to pictures as they are brought to it."""
    doubts = texts(check.warnings)
    count = number(check.pictures)
    if doubts:
        return "".join(element("p", escape(d), class_="departure") for d in doubts)
    if not count:
        why = "Whether that is right was not checked: the network gives no classes."
        return element("p", why, class_="near")
    right, steady = check.right, check.steady
    how = f"The float network looked at {count:g} of them in neighboring ways, and none is better."
    if right is not None:
        how += f" It is right about {100 * right:.0f} % of them."
    elif steady is not None:
        how += f" Kappa of pictures and their mirror images is {steady:.2f}."
    return element("p", escape(how), class_="agrees")


def sheet(found: Data) -> str:
    """The first pictures of calibration, as the network sees them."""
    drawn = found.sheet
    names = texts(drawn.captions)
    named = f": {', '.join(names)}" if any(names) else ""
    image = picture(drawn.picture, f"calibration pictures as the network sees them{named}", "sheet")
    if not image:
        return ""
    caption = "Calibration pictures as the network sees them, turned back into colors."
    if any(names):
        caption += f" Their classes, row by row: {', '.join(names)}."
    return element("figure", image, element("figcaption", escape(caption)), class_="pictures")
