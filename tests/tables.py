"""The tables of the documentation that are made from the code: `python -m tests.tables` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from comps.app import make_dialects, read_settings
from comps.dialects.shared.base import Call, Dialect, GenerationCall, owner_of
from comps.dialects.shared.endpoint import Endpoint
from comps.openapi_examples import stream
from comps.settings import SECTIONS, environment_names
from comps.telemetry import Telemetry

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
            for name, fact in facts.items():
                if fact.header:
                    lines.append(_clash(route, f"with the header `{fact.header.decode()}`", [name], name))
            plain = [name for name, fact in facts.items() if not fact.header]
            lines.append(_clash(route, "", plain, owner_of(route, dialects).name))
    names = [dialect.name for dialect in dialects]
    return "\n".join([*lines, _clash("", "a route that is near none of these: the error", names, names[0])])


def _clash(route: str, body: str, claiming: list[str], owner: str) -> str:
    claims = ", ".join(f"`{name}`" for name in claiming)
    return f"| {f'`{route}`' if route else ''} | {body} | {claims} | `{owner}` |"


def routes_table() -> str:
    """The table of all routes of the dialects, as it must stand in docs/dialects.md."""
    lines = ["| dialect | route | body | what it is | streamed as |", "|---|---|---|---|---|"]
    for dialect in make_dialects(read_settings(None)):
        for path, calls in dialect.calls.items():
            for call in () if _is_repeated(path, dialect.calls) else calls:
                marker = f"with `{call.marker}`" if len(calls) > 1 else ""
                row = f"| `{dialect.name}` | `POST {path}` | {marker} | {_told(call)} | {_streamed(call, dialect)} |"
                lines.append(row)
        for name, route in dialect.routes.items():
            if not _is_repeated(name, dialect.routes):
                shown = name.replace(":path}", "}")
                lines.append(f"| `{dialect.name}` | `{shown}` |  | {_told(route.respond)} | – |")
    return "\n".join(lines)


def metrics_table() -> str:
    """The table of metrics, as it must stand in docs/metrics.md."""
    lines = ["| metric | type | labels | what it is |", "|---|---|---|---|"]
    for metric in Telemetry().collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ()))
        lines.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(lines)


def _is_repeated(path: str, paths: Container[str]) -> bool:
    """Whether a path is another one with a model's name in it."""
    return "/{model:path}/" in path and path.replace("/{model:path}", "") in paths


def _told(one: object) -> str:
    return " ".join((one.__doc__ or "").split()).rstrip(".")


def _streamed(call: type[Call], dialect: Dialect) -> str:
    if issubclass(call, GenerationCall) and any(stream(call, dialect, one) for one in call.examples.values()):
        return call.media_type.partition(";")[0]
    return "–"


TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "settings.md": {"settings": settings_table},
    "metrics.md": {"metrics": metrics_table},
    "dialects.md": {"clashes": clash_table, "routes": routes_table},
}
"""By page: what makes each table, by the name of the comments around it."""


def written(page: str) -> str:
    """A page with its tables made anew."""
    text = (DOCS / page).read_text("utf-8")
    for mark, table in TABLES[page].items():
        between = re.compile(f"(?<=<!-- {mark} -->\n).*?(?=\n<!-- /{mark} -->)", re.DOTALL)
        text = between.sub(table().replace("\\", r"\\"), text)
    return text


def main() -> None:
    for page in TABLES:
        (DOCS / page).write_text(written(page), "utf-8")


if __name__ == "__main__":
    main()
