"""The tools for agents over HTTP: each request is answered by itself, and nothing is kept of it.

Knows: the protocol's HTTP form. Does not know: keys, names and limits, which the guard has seen to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from broadsheet.serve.agents.tools import Agents


class AgentRoute:
    """The tools as an ASGI app, while `running`.

    Args:
        most: bytes of a request.
        closing: whether nothing new is taken.

    Attributes:
        path: where it answers, and under which it is counted.
    """

    path = "/mcp"

    def __init__(self, agents: Agents, most: int, closing: Callable[[], bool]) -> None:
        from mcp.server.transport_security import TransportSecuritySettings

        server = agents.server()
        server.streamable_http_app(
            stateless_http=True,  # no session to keep, to end, or to be taken over by somebody with another key
            max_request_body_size=most,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the guard does that
        )
        self._manager, self._closing = server.session_manager, closing

    def running(self) -> AbstractAsyncContextManager[None]:
        """It answers until that ends; once."""
        running: AbstractAsyncContextManager[None] = self._manager.run()
        return running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        if self._closing():
            raise HTTPException(503, "the server is closing", {"retry-after": "5"})
        await self._manager.handle_request(scope, receive, send)
