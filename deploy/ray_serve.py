"""broadsheet on Ray Serve: copies of the server on a cluster, behind Ray's proxy.

    pip install 'ray[serve]' -e '.[serve]'     # on every node, and there BROADSHEET_SERVE_KEYS
    serve run deploy.ray_serve:app

A key's limits and /metrics are a copy's own.
"""

import os
from typing import Any

from ray import serve

from broadsheet.serve.app import create_app
from broadsheet.serve.guard import KeyRing, Limits
from broadsheet.serve.models.named import Models
from broadsheet.serve.processes.running import check_address


def build() -> Any:
    """The app of one copy, made where it runs: there the models are loaded."""
    keys = KeyRing.of(None, os.environ)
    check_address("0.0.0.0", keys)  # without a key everybody who reaches the proxy could use it
    return create_app(Models(models=["default"]), keys, Limits(hosts=()))  # the proxy is called by any name


app = serve.deployment(
    name="broadsheet",
    num_replicas=2,
    max_ongoing_requests=256,  # they share the model: few would leave it idle
    graceful_shutdown_timeout_s=130,  # what was begun is answered
    ray_actor_options={"num_cpus": 2},  # {"num_gpus": 1} on a GPU
)(serve.ingress(build)()).bind()
