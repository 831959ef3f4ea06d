"""Gatekeeper compared with other products, which the user starts: see docs/peers.md.

`python -m bench.peers [gatekeeper] [empty] [PROTOCOL URL]...` measures servers in turn, one second each: Gatekeeper, a
plain handler of grpcio with an empty answer (`bench.empty`), and peers. `python -m bench.peers config PROTOCOL` prints
the flags as a peer reads them. Compare ratios: all figures are medians of the rounds.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.h2load import PROGRAM
from bench.peers.checks import WrongAnswer
from bench.peers.clients import Address, address_of
from bench.peers.configurations import WRITERS
from bench.peers.flags import Flag, flags_of
from bench.peers.gatekeeper import create
from bench.peers.protocols import Empty, Gatekeeper, Protocol, protocol_of
from bench.peers.rounds import ALL, ONE, Subject, Trial, Work, subject
from bench.processes import log_in, serving
from bench.unary import Round
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub

GATEKEEPER, EMPTY = "gatekeeper", "empty"
LOOPBACK = "127.0.0.1"


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Compare with other products.")
    parser.add_argument("servers", nargs="+", metavar="SERVER", help="gatekeeper, empty, or PROTOCOL URL")
    parser.add_argument("--flags", type=int, default=20, metavar="N", help="flags of every server (20)")
    parser.add_argument("--seconds", type=int, default=9, metavar="S", help="seconds of load of each server (9)")
    parser.add_argument("--connections", type=int, default=8, metavar="C", help="with 2 calls in flight each (8)")
    parser.add_argument("--users", type=int, default=1_000, metavar="N", help="users in turn (1,000)")
    parser.add_argument("--work", choices=(ALL, ONE), action="append", help="flags that a call asks for (both)")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="sent to peers over HTTP")
    parser.add_argument("--cores", metavar="SERVER:LOAD", help="cores for Gatekeeper and for the load, such as 0:1")
    return parser.parse_intermixed_args(words)


def peers_of(words: Sequence[str]) -> Iterator[tuple[str, Protocol, Address | None]]:
    """Return name, protocol and address of each server; those without an address are ours.

    Raises:
        LookupError: a protocol is not known.
        ValueError: a URL is none.
    """
    rest = iter(words)
    for word in rest:
        if word in (GATEKEEPER, EMPTY):
            yield word, Gatekeeper() if word == GATEKEEPER else Empty(), None
        else:
            scheme, address = address_of(next(rest, ""))
            yield f"{word}:{address.port}", protocol_of(word, scheme), address


def configuration(words: Sequence[str], flags: Sequence[Flag]) -> str:
    """Return the flags as a product reads them.

    Raises:
        LookupError: there is none of this name.
    """
    name = " ".join(words)
    if name not in WRITERS:
        raise LookupError(f"config is for one of {', '.join(WRITERS)}, not for {name!r}")
    return json.dumps(WRITERS[name](flags), indent=1)


def started(stack: ExitStack, name: str, flags: Sequence[Flag]) -> Address:
    """Start a server of ours, until the stack is closed."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    module = ("gatekeeper_grpc", "serve") if name == GATEKEEPER else ("bench.empty",)
    instance = stack.enter_context(serving(folder, module))
    if name == GATEKEEPER:
        with instance.channel() as channel:
            create(AdminServiceStub(channel), flags, log_in(instance))
    return Address(LOOPBACK, instance.port)


@contextmanager
def on_core(core: str | None) -> Iterator[None]:
    """Keep to one core, with all that is started inside the block."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {int(core)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(subjects: Sequence[Subject], work: Work, seconds: int) -> None:
    """Measure in turn, and print."""
    trials = [Trial(each, work) for each in subjects if work.calls(each.protocol, 0)]
    for trial in trials:
        trial.examine()
        trial.warm_up()
    for second in range(1, seconds + 1):
        for trial in trials:
            trial.measure(second)
    own = next((trial.rounds for trial in trials if trial.subject.name == GATEKEEPER), None)
    for trial in trials:
        print(f"  {work.kind:<3} of {len(work.flags):>5} flags  {line(trial, own)}", flush=True)


def line(trial: Trial, own: Sequence[Round] | None) -> str:
    """Return what was found; compared with the rounds of Gatekeeper if it was measured."""
    rate, cpu_us = (statistics.median(each[n] for each in trial.rounds) for n in range(2))
    tally, ratio = trial.tally, ""
    if own:
        ratios = sorted(one.rate / other.rate for one, other in zip(trial.rounds, own, strict=True))
        ratio = f"  {statistics.median(ratios):5.2f} of gatekeeper ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    checked = f"{tally.answers} answers right, {tally.share:.2f} of {tally.draws} draws true"
    return (
        f"{trial.subject.name:<14} {rate:>7,.0f} calls/s{ratio}  {cpu_us:>6,.0f} us of CPU a call"
        f"  {checked if trial.subject.protocol.evaluates else 'not checked'}"
    )


def main(words: Sequence[str]) -> None:
    """Print a configuration, or measure and print.

    Raises:
        LookupError: a word of the command line is not known, or h2load is not there.
        ValueError: a URL is none.
        WrongAnswer: a server did not answer, or not as its flags say.
    """
    options = arguments(words)
    flags = flags_of(options.flags)
    if options.servers[0] == "config":
        print(configuration(options.servers[1:], flags))
        return
    servers = [*peers_of(options.servers)]
    if not PROGRAM.exists():
        raise LookupError("h2load is not there: `make bench-peers` unpacks it")
    server_core, load_core = options.cores.split(":") if options.cores else (None, None)
    headers = dict(header.split(":", 1) for header in options.header)
    with ExitStack() as stack:
        addresses = []
        with on_core(server_core):
            for name, protocol, address in servers:
                addresses.append((name, protocol, address or started(stack, name, flags)))
        stack.enter_context(on_core(load_core))
        subjects = [
            subject(stack, name, protocol, address, headers=headers, connections=options.connections)
            for name, protocol, address in addresses
        ]
        for kind in options.work or (ONE, ALL):
            compare(subjects, Work(kind, flags, options.users), options.seconds)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (WrongAnswer, LookupError, ValueError) as wrong:
        sys.exit(f"not measured: {wrong}")
