"""The client when a server is down or busy: bounded concurrency, retries, back-off with jitter, the deadline."""

import asyncio
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from fake_servers import EXHAUSTED, Answering, predict_response
from hypothesis import given
from hypothesis import strategies as st

from mlet_tf.errors import InputError
from mlet_tf.serving import AsyncCTRClient, CTRClient, ServingError
from mlet_tf.serving.retry import Backoff
from mlet_tf.serving.rows import Rows

UNAVAILABLE, RESOURCE_EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
ROWS = [[{"C1": "x" * n}] for n in range(20)]
LENGTHS = [len(Rows(rows).examples[0]) for rows in ROWS]


class Drawn(random.Random):
    """Random numbers that are a fixed share of their bound, and the bounds they were drawn up to."""

    def __init__(self, share=0.0):
        super().__init__()
        self.share, self.bounds = share, []

    def uniform(self, low, high):
        assert low == 0
        self.bounds.append(high)
        return self.share * high


def in_threads(target, calls, **options):
    with CTRClient(target, timeout=300, **options) as client, ThreadPoolExecutor(len(calls)) as threads:
        return np.concatenate(list(threads.map(client.predict, calls))).tolist()


def in_asyncio(target, calls, **options):
    async def main():
        async with AsyncCTRClient(target, timeout=300, **options) as client:
            return await asyncio.gather(*map(client.predict, calls))

    return np.concatenate(asyncio.run(main())).tolist()


both_protocols = pytest.mark.parametrize("protocol", ["grpc", "rest"])
both_clients = pytest.mark.parametrize("ask", [in_threads, in_asyncio])


@both_protocols
@both_clients
@pytest.mark.parametrize(("options", "limit"), [({}, 4), ({"max_concurrency": 2}, 2)])
def test_of_many_calls_at_once_few_are_under_way(busy, protocol, ask, options, limit):
    """A real server has four threads a core and refuses what exceeds them."""
    model, target = busy(protocol)
    assert ask(target, ROWS, protocol=protocol, retries=0, **options) == LENGTHS
    assert 1 <= model.most <= limit


@both_protocols
@both_clients
def test_20_at_once_at_a_busy_server_are_all_answered(busy, protocol, ask):
    model, target = busy(protocol, refusals=3)
    assert ask(target, ROWS, protocol=protocol, max_concurrency=20, retries=3, backoff=0.01) == LENGTHS
    assert model.asked == 4 * len(ROWS)


@pytest.mark.parametrize("status", [502, 503])
def test_a_gateway_whose_server_is_down_is_asked_again(busy, status):
    model, target = busy("rest", refusals=2, status=status)
    assert in_threads(target, ROWS[:1], protocol="rest", rng=Drawn()) == LENGTHS[:1]
    assert model.asked == 3


@both_protocols
def test_a_bulk_call_goes_on_after_refusals_with_answers_in_order(busy, protocol):
    model, target = busy(protocol, refusals=1)
    rows = [row for rows in ROWS for row in rows]
    assert in_threads(target, [rows], protocol=protocol, max_batch=3, rng=Drawn()) == LENGTHS
    assert model.asked == 2 * 7


@both_protocols
def test_when_retries_are_used_up_the_servers_words_are_raised(busy, protocol):
    model, target = busy(protocol, refusals=9)
    with (
        CTRClient(target, protocol=protocol, retries=2, rng=Drawn()) as client,
        pytest.raises(ServingError, match=f"^RESOURCE_EXHAUSTED: {EXHAUSTED}$") as caught,
    ):
        client.predict([{}])
    assert model.asked == 3 and caught.value.retryable


def test_an_error_comes_whole_out_of_another_process():
    error = ServingError("RESOURCE_EXHAUSTED", "too large", row=3, shown="{}", retryable=False)
    read = pickle.loads(pickle.dumps(error))
    assert (str(read), read.code, read.details, read.row) == (str(error), error.code, error.details, 3)
    assert not read.retryable


def test_more_requests_of_asyncio_over_rest_than_the_event_loop_has_threads(http_server):
    """All 40 are with the server at once: each is answered only when the last one has come."""
    barrier = threading.Barrier(40)

    class Handler(Answering):
        def reply(self, _):
            barrier.wait(300)
            return 200, '{"outputs": [0.25]}'

    calls = [[{}]] * 40
    options = {"protocol": "rest", "max_concurrency": 40, "retries": 0}
    assert in_asyncio(http_server(Handler), calls, **options) == [0.25] * 40


@both_protocols
def test_no_pause_outlasts_the_deadline(busy, protocol):
    model, target = busy(protocol, refusals=9)
    with (
        CTRClient(target, protocol=protocol, timeout=60, rng=Drawn(1000.0)) as client,
        pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"),
    ):
        client.predict([{}])
    assert model.asked == 1


@pytest.mark.parametrize("code", [UNAVAILABLE, RESOURCE_EXHAUSTED])
def test_the_bound_of_the_pause_doubles_up_to_two_seconds(flaky, code):
    service, target = flaky(*[code] * 7)
    rng = Drawn()
    with CTRClient(target, backoff=0.1, retries=7, rng=rng) as client:
        assert client.predict([{}])[0] == 0.5
    assert rng.bounds == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert len(service.seen) == 8


@given(st.integers(0, 2**31), st.floats(0, 100), st.integers(0, 5000))
def test_pauses_are_drawn_from_the_whole_range_and_repeat_with_the_seed(seed, base, attempt):
    error = ServingError("UNAVAILABLE", "")
    pauses = [
        Backoff(5001, base, random.Random(seed)).pause(error, attempt, deadline=float("inf"))
        for _ in range(2)
    ]
    assert pauses[0] == pauses[1]
    bound = min(2.0, base * 2.0 ** min(attempt, 60))
    assert pauses[0] == pytest.approx(random.Random(seed).random() * bound)


@pytest.mark.parametrize("code", ["INTERNAL", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN"])
def test_other_errors_are_not_retried(flaky, code):
    service, target = flaky(grpc.StatusCode[code])
    with CTRClient(target) as client, pytest.raises(ServingError, match=f"{code}: not now") as caught:
        client.predict([{}])
    assert len(service.seen) == 1 and not caught.value.retryable


@pytest.mark.parametrize(
    "details", ["Received message larger than max (9 vs. 4)", "received metadata size exceeds hard limit"]
)
def test_a_request_that_is_too_large_is_not_sent_again_over_grpc(flaky, details):
    service, target = flaky([RESOURCE_EXHAUSTED, details])
    with CTRClient(target) as client, pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"):
        client.predict([{}])
    assert len(service.seen) == 1


def test_a_request_that_is_too_large_is_not_sent_again_over_rest(busy):
    model, target = busy("rest", refusals=1, status=413)
    with (
        CTRClient(target, protocol="rest") as client,
        pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"),
    ):
        client.predict([{}])
    assert model.asked == 1


def test_each_attempt_has_what_is_left_of_the_time(flaky):
    service, target = flaky(*[UNAVAILABLE] * 2)
    with CTRClient(target, timeout=9, backoff=1, rng=Drawn(1.0)) as client:
        client.predict([{}])
    left = [seen[2] for seen in service.seen]
    # Of longer times gRPC sends no more than the seconds or minutes, rounded up.
    assert left[0] <= 9.1 and left[1] <= 8.1 and left[2] <= 6.1


@both_protocols
def test_a_closed_client_refuses_and_opens_no_connection(busy, protocol):
    """gRPC raised an error of its own, REST connected again."""
    model, target = busy(protocol)
    client = CTRClient(target, protocol=protocol)
    client.close()
    client.close()

    async def ask_closed():
        other = AsyncCTRClient(target, protocol=protocol)
        await other.close()
        await other.predict([{}])

    for ask in (
        lambda: client.predict([{}]),
        client.status,
        client.metadata,
        client.wait_until_ready,
        lambda: asyncio.run(ask_closed()),
    ):
        with pytest.raises(InputError, match=rf"^client of {target}: expected an open one"):
            ask()
    assert model.asked == 0


@pytest.fixture
def stuck(grpc_server, http_server):
    """Starts a server that answers only after `go_on`; `begun` tells that a request has come."""
    begun, go_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        go_on.wait(30)

    def predict(*_):
        wait()
        return predict_response([0.25])

    class Handler(Answering):
        def reply(self, _):
            wait()
            return 200, '{"outputs": [0.25]}'

    def start(protocol):
        target = grpc_server(predict) if protocol == "grpc" else http_server(Handler)
        return target, begun, go_on

    yield start
    go_on.set()


@both_protocols
def test_a_call_waits_for_its_turn_no_longer_than_its_deadline(stuck, protocol):
    target, begun, go_on = stuck(protocol)

    def refused():
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
            client.predict([{}])

    options = {"protocol": protocol, "timeout": 0.5, "retries": 0, "max_concurrency": 1}
    with CTRClient(target, **options) as client:
        first = threading.Thread(target=refused)
        first.start()
        assert begun.wait(30)
        refused()
        first.join()
    go_on.set()
    with CTRClient(target, **options | {"timeout": 30}) as client:
        assert client.predict([{}]).tolist() == [0.25]


def test_a_call_of_asyncio_waits_for_its_turn_and_a_cancelled_one_makes_room(stuck):
    target, begun, go_on = stuck("grpc")

    async def main():
        async with AsyncCTRClient(target, timeout=300, max_concurrency=1) as client:
            first = asyncio.create_task(client.predict([{}]))
            await asyncio.to_thread(begun.wait, 30)
            second = asyncio.create_task(client.predict([{}]))
            await asyncio.sleep(0.05)
            first.cancel()
            go_on.set()
            return await second

    assert asyncio.run(main()).tolist() == [0.25]
