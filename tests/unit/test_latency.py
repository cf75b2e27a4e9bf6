"""The latency digest against sorted lists."""

import random

import pytest

from understudy.core.gateway.latency import BUCKETS, LatencyDigest, bucket_of, upper_bound_us


def test_buckets_are_contiguous_and_bounds_are_tight():
    for us in [*range(2000), 10_000, 123_456, 10**7, 2**31]:
        bucket = bucket_of(us)
        assert us <= upper_bound_us(bucket)
        assert bucket == 0 or us > upper_bound_us(bucket - 1)


def test_absurd_latency_lands_in_the_last_bucket():
    assert bucket_of(2**60) == BUCKETS - 1
    assert bucket_of(-5) == 0


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_quantile_is_within_an_eighth_of_the_truth(q: float):
    chance = random.Random(7)
    samples = [chance.lognormvariate(-7, 1) for _ in range(5000)]
    digest = LatencyDigest(now=0.0)
    for sample in samples:
        digest.record(sample)
    truth = sorted(samples)[int(q * len(samples))]
    assert digest.quantile(q) == pytest.approx(truth, rel=0.13)


def test_no_sample_no_quantile():
    assert LatencyDigest(now=0.0).quantile(0.5) is None


def test_the_past_fades_after_two_windows():
    digest = LatencyDigest(now=0.0)
    digest.record(1.0)
    digest.rotate(6.0)
    assert digest.quantile(0.5) == pytest.approx(1.0, rel=0.13)
    digest.rotate(12.0)
    assert digest.quantile(0.5) is None
