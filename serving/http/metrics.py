"""Prometheus metrics of the service, scraped from ``GET /metrics``."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mme.evaluation.answers import EDGES

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BOTH = ("champion", "challenger", "role")
_VIEWS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class ModelSeries:
    """Attempts to load a model, by outcome, and which one is loaded."""

    loads: Counter
    info: Gauge


class Metrics:
    """Metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("http_requests", "Requests answered", "method", "route", "status")
        self.request_seconds = self._histogram("http_request_seconds", "Time to the answer's end", _SECONDS, "route")
        self.upload_bytes = self._counter("upload_bytes", "Bytes of request bodies received")
        self.videos = self._counter("videos", "Videos by outcome: ok, or the problem", "outcome")
        self.decode_seconds = self._histogram("decode_seconds", "Decoding one video, without waiting", _SECONDS)
        self.tracking_seconds = self._histogram("tracking_seconds", "Decoding and tracking one video", _SECONDS)
        self.inference_seconds = self._histogram("inference_seconds", "One forward pass", _SECONDS)
        self.batch_views = self._histogram("batch_views", "Views in one forward pass", _VIEWS)
        self.admitted = self._gauge("admitted_requests", "Requests in progress or waiting")
        self.admitted_long = self._gauge("admitted_long_requests", "Long videos in progress or waiting")
        self.decoding = self._gauge("decoding_videos", "Videos that decoding processes work on")
        self.queued = self._gauge("queued_videos", "Decoded videos that wait for the model")
        self.windows = self._counter("windows", "Windows of long videos classified")
        self.decoders_replaced = self._counter("decoders_replaced", "Decoding processes that died or were killed")
        self.predictions = self._counter("predictions", "Answers by their most probable label", "kind", "label")
        self.confidence = self._histogram(
            "prediction_confidence", "Probability of the most probable label", EDGES, "kind"
        )
        self.entropy = self._histogram("prediction_entropy", "Entropy of the labels, 1 if all are alike", EDGES, "kind")
        self.drift = self._gauge("answer_drift", "Stability index of recent answers against the evaluation", "of")
        self.shadow_videos = self._counter("shadow_videos", "Videos for the challenger, by outcome", "outcome")
        for outcome in ("answered", "dropped", "failed"):
            self.shadow_videos.labels(outcome)
        self.shadow_answers = self._counter(
            "shadow_answers", "Videos that both models answered, by whether alike", "champion", "challenger", "agree"
        )
        self.shadow_seconds = self._histogram(
            "shadow_seconds", "Processor time of one video in a model, on one thread", _SECONDS, *_BOTH
        )
        self.shadow_confidence = self._histogram(
            "shadow_confidence", "Probability of the most probable label, of the same videos", EDGES, *_BOTH
        )
        self.shadow_model = ModelSeries(
            self._counter("shadow_model_loads", "Attempts to load a challenger", "outcome"),
            self._gauge("shadow_model_info", "1 for the model that answers beside", "name", "version", "digest"),
        )
        self.feedback = self._counter("feedback", "Right labels that callers sent: agrees or disagrees", "outcome")
        for outcome in ("agrees", "disagrees"):
            self.feedback.labels(outcome)  # a series from the start, so that its rate counts the first one
        self.feedback_clips = self._gauge("feedback_clips", "Clips kept with their right labels")
        self.feedback_bytes = self._gauge("feedback_bytes", "Bytes of the folder of these clips")
        self.model = ModelSeries(
            self._counter("model_loads", "Attempts to load a model", "outcome"),
            self._gauge("model_info", "1 for the model that answers", "name", "version", "digest"),
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mme_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"mme_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"mme_{name}", text, labels, buckets=buckets, registry=self.registry)
