"""Pages for people: one HTML file that needs nothing else, in the style and under the rules of page.html."""

from base64 import b64encode
from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(name: str, values: Mapping[str, object], **filters: Callable[..., object]) -> str:
    """Fill a page: no script, nothing fetched, and every value escaped.

    Args:
        name: a template of this package that extends page.html.
        values: what the template names.
        filters: what it calls beside `data_uri`.
    """
    environment = Environment(
        loader=PackageLoader("dermtune", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, **filters}
    return environment.get_template(name).render(values)


def data_uri(image: bytes, kind: str) -> str:
    """An image as an address that holds it; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{b64encode(image).decode('ascii')}"
