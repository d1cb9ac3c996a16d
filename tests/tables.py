"""The tables of the documentation that are made from the code: `python -m tests.tables` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from comps.app import make_dialects, read_settings
from comps.dialects.shared.endpoint import Endpoint
from comps.settings import SECTIONS, environment_names

DOCS = Path(__file__).parent.parent / "docs"


def settings_table() -> str:
    """The tables of settings, as they must stand in docs/settings.md: one for each section."""
    lines = []
    for name, section in SECTIONS.items():
        said = (section.__doc__ or "").partition("\n\n")[0]
        head = ["| key | environment | default | what it is |", "|---|---|---|---|"]
        lines += ["", f"## [{name}]", "", " ".join(said.split()), "", *head]
        for key, info in section.model_fields.items():
            variables = ", ".join(f"`{variable}`" for variable in environment_names(info))
            default = ", ".join(info.default) if isinstance(info.default, tuple) else str(info.default)
            shown = f"`{default}`" if default else "empty"
            lines.append(f"| `{key}` | {variables} | {shown} | {info.description} |")
    return "\n".join(lines[1:])


def clash_table() -> str:
    """The table of what several dialects claim, in the default order, as it must stand in docs/dialects.md."""
    dialects = make_dialects(read_settings(None))
    lines = ["| route | body | claimed by | answered by |", "|---|---|---|---|"]
    for path in dict.fromkeys(path for dialect in dialects for path in dialect.calls):
        claims = {one.name: [call.marker for call in one.calls[path]] for one in dialects if path in one.calls}
        if len(claims) > 1:
            endpoint = Endpoint(path, dialects)
            for call, owner in endpoint.calls:
                claiming = [name for name, markers in claims.items() if call.marker in markers]
                lines.append(_clash(f"POST {path}", f"with `{call.marker}`", claiming, owner.name))
            lines.append(_clash(f"POST {path}", "none of these: the error", list(claims), endpoint.calls[0][1].name))
    for route in dict.fromkeys(route for dialect in dialects for route in dialect.routes):
        facts = {one.name: one.routes[route] for one in dialects if route in one.routes}
        if len({fact.respond for fact in facts.values()}) > 1:
            lines.append(_clash(route, "", list(facts), next(iter(facts))))
    names = [dialect.name for dialect in dialects]
    return "\n".join([*lines, _clash("", "a route that there is not: the error", names, names[0])])


def _clash(route: str, body: str, claiming: list[str], owner: str) -> str:
    claims = ", ".join(f"`{name}`" for name in claiming)
    return f"| {f'`{route}`' if route else ''} | {body} | {claims} | `{owner}` |"


TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "settings.md": ("settings", settings_table),
    "dialects.md": ("clashes", clash_table),
}
"""By page: the name of the comments around the table, and what makes it."""


def written(page: str) -> str:
    """A page with its table made anew."""
    mark, table = TABLES[page]
    text = (DOCS / page).read_text("utf-8")
    between = re.compile(f"(?<=<!-- {mark} -->\n).*?(?=\n<!-- /{mark} -->)", re.DOTALL)
    return between.sub(lambda _: table(), text)


def main() -> None:
    for page in TABLES:
        (DOCS / page).write_text(written(page), "utf-8")


if __name__ == "__main__":
    main()
