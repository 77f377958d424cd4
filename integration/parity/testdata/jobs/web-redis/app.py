"""Counts visits, in Redis."""
import os
from wsgiref.simple_server import WSGIRequestHandler, make_server

import redis

store = redis.Redis(os.environ["REDIS_HOST"])


def app(environ, start_response):
    visits = store.incr("visits:" + environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d\n" % visits]


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


make_server("127.0.0.1", 8000, app, handler_class=Quiet).serve_forever()
