"""A stand-in for Docker's engine, for a real Compose to speak to. It starts nothing, and remembers what it was told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web

LOOKS = 2
"""How often Compose has to look at a container before it is healthy."""


@dataclass
class Container:
    """What would be a container."""

    name: str
    body: Mapping[str, Any]
    """What it was to be made of."""
    started: bool = False
    looks: int = 0

    @property
    def service(self) -> str:
        """The service that it is of."""
        return str(self.body["Labels"]["com.docker.compose.service"])

    @property
    def state(self) -> str:
        return "running" if self.started else "created"

    def listed(self) -> dict[str, Any]:
        """What a list of containers says of it."""
        image, labels = self.body["Image"], self.body["Labels"]
        return {"Id": self.name, "Names": [f"/{self.name}"], "Image": image, "Labels": labels, "State": self.state}


@dataclass
class Engine:
    """An engine that has every image and no container, network or volume yet."""

    happened: list[tuple[str, str]] = field(default_factory=list)
    """What happened, and to which service."""
    containers: dict[str, Container] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    volumes: dict[str, Any] = field(default_factory=dict)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen on a socket; what comes is the address, as DOCKER_HOST has it."""
        app = web.Application()
        for method, path, answer in (
            ("GET", "/_ping", self._ping),
            ("GET", "/version", self._about),
            ("GET", "/info", self._about),
            ("GET", "/images/{image:.+}/json", self._image),
            ("GET", "/containers/json", self._list),
            ("POST", "/containers/create", self._create),
            ("POST", "/containers/{name}/start", self._start),
            ("GET", "/containers/{name}/json", self._inspect),
        ):
            for before in ("", "/{version:v[0-9.]+}"):
                app.router.add_route(method, before + path, answer)
                if method == "GET":
                    app.router.add_route("HEAD", before + path, answer)
        for kind, things in (("networks", self.networks), ("volumes", self.volumes)):
            app.router.add_route("*", f"/{{version:v[0-9.]+}}/{kind}{{rest:.*}}", _keeper(kind, things))
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            with TemporaryDirectory() as folder:  # pytest's own would be too long a name for a socket.
                await web.UnixSite(runner, f"{folder}/docker.sock").start()
                yield f"unix://{folder}/docker.sock"
        finally:
            await runner.cleanup()

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="OK", headers={"Api-Version": "1.41", "Ostype": "linux"})

    async def _about(self, _: web.Request) -> web.Response:
        about = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10.24", "Os": "linux", "Arch": "amd64"}
        return web.json_response({**about, "OSType": "linux", "Swarm": {"LocalNodeState": "inactive"}})

    async def _image(self, request: web.Request) -> web.Response:
        image = request.match_info["image"]
        return web.json_response({"Id": f"sha256:{image}", "RepoTags": [image], "Config": {}, "Os": "linux"})

    async def _list(self, request: web.Request) -> web.Response:
        wanted = json.loads(request.query.get("filters", "{}"))
        found = [one for one in self.containers.values() if _matches(one.body["Labels"], wanted)]
        return web.json_response([one.listed() for one in found])

    async def _create(self, request: web.Request) -> web.Response:
        name = request.query["name"]
        self.containers[name] = Container(name, await request.json())
        return web.json_response({"Id": name, "Warnings": []}, status=201)

    async def _start(self, request: web.Request) -> web.Response:
        container = self.containers[request.match_info["name"]]
        container.started = True
        self.happened.append(("started", container.service))
        return web.Response(status=204)

    async def _inspect(self, request: web.Request) -> web.Response:
        container = self.containers.get(request.match_info["name"])
        if container is None:
            return web.json_response({"message": "no such container"}, status=404)
        container.looks += container.started
        if container.looks == LOOKS:
            self.happened.append(("healthy", container.service))
        health = "healthy" if container.looks >= LOOKS else "starting"
        return web.json_response(
            {
                "Id": container.name,
                "Name": f"/{container.name}",
                "Image": f"sha256:{container.body['Image']}",
                "State": {
                    "Status": container.state,
                    "Running": container.started,
                    "ExitCode": 0,
                    "Health": {"Status": health},
                },
                "Config": {key: value for key, value in container.body.items() if key != "HostConfig"},
                "HostConfig": container.body["HostConfig"],
                "NetworkSettings": {"Networks": {}},
                "Mounts": [],
            }
        )


def _matches(labels: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Whether labels are among those that a list is filtered by."""
    pairs = (label.partition("=") for label in wanted.get("label", ()))
    return all(name in labels and (not equals or labels[name] == value) for name, equals, value in pairs)


def _keeper(kind: str, things: dict[str, Any]) -> Any:
    """Answers about networks, or volumes."""

    async def answer(request: web.Request) -> web.Response:
        name = request.match_info["rest"].strip("/").removesuffix("/connect").removesuffix("/disconnect")
        if name == "create":
            body = await request.json()
            things[body["Name"]] = {**body, "Id": body["Name"], "Driver": body.get("Driver") or "", "Scope": "local"}
            return web.json_response(things[body["Name"]], status=201)
        if name:
            found = name in things
            return web.json_response(things[name] if found else {"message": "not found"}, status=200 if found else 404)
        wanted = json.loads(request.query.get("filters", "{}"))
        named = [one for one in things.values() if one["Name"] in wanted.get("name", {one["Name"]: True})]
        found_all = [one for one in named if _matches(one.get("Labels") or {}, wanted)]
        return web.json_response(found_all if kind == "networks" else {"Volumes": found_all, "Warnings": []})

    return answer
