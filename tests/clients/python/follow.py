"""Follow a job with httpx-sse: follow.py URL KEY. The package leaves it to its user to connect again."""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse


def follow(client, url):
    last, pause = None, 0.0
    while True:
        try:
            with connect_sse(client, "GET", url, headers={"Last-Event-ID": last} if last else {}) as source:
                if source.response.status_code == 204:
                    return
                source.response.raise_for_status()
                for event in source.iter_sse():
                    if event.retry is not None:
                        pause = event.retry / 1000
                    if event.data:
                        last = event.id or last
                        tell(event)
        except httpx.TransportError as error:
            print(repr(error), file=sys.stderr)
        time.sleep(pause)


def tell(event):
    # A client's last id stays with it over events that have none.
    number = f"id: {event.id}\n" if "id" in json.loads(event.data) else ""
    print(f"{number}event: {event.event}\ndata: {event.data}\n", flush=True)


address, key = sys.argv[1:]
with httpx.Client(headers={"X-API-Key": key}, timeout=30) as the_client:
    follow(the_client, address)
