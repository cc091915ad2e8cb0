"""Serves MatEnsemble's dashboard on a free port; run by an interpreter that has ``matensemble``."""

import socket
import sys

import uvicorn
from matensemble.dashboard import create_dashboard_app

with socket.socket() as listening:
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # so that a client may connect before the server has begun to answer
    print(listening.getsockname()[1], flush=True)
    app = create_dashboard_app(sys.argv[1])
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])
