from __future__ import annotations

import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mme.evaluation.answers import softmax
from mme.evaluation.classifier import Classifier, choose_device
from mme.models.checkpoints import content_digest
from mme.models.encoder import model_input
from mme.models.precision import has_bf16
from mme.video.codec import read_frames, write_video
from mme.video.containers import VideoError
from tests.tiny import LABELS, moving_frames, save_tiny_folder, tiny_config, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    write_video(path, moving_frames(), fps=16, crf=10, gop_frames=4)
    return path


def reference_logits(frames: np.ndarray) -> np.ndarray:
    """Written out by hand for 32 x 48 pixels: halve by area, cut the centre, normalise, two clips, average."""
    halved = frames.astype(np.float64).reshape(len(frames), 16, 2, 24, 2, 3).mean(axis=(2, 4))
    centre = np.floor(halved[:, :, 4:20] + 0.5) / 255
    config = tiny_config()
    pixels = (centre - np.array(config.clip.mean)) / np.array(config.clip.std)
    clips = np.stack([pixels[start : start + 7 : 2] for start in (0, len(frames) - 7)]).transpose(0, 4, 1, 2, 3)
    with torch.no_grad():
        logits: np.ndarray = tiny_model(config)(torch.from_numpy(clips).float()).mean(dim=0).numpy()
    return logits


def test_logits_agree_with_a_hand_written_path(classifier: Classifier) -> None:
    frames = moving_frames()
    assert classifier.classify(frames).logits == pytest.approx(reference_logits(frames), abs=0.05)
    blocks = np.repeat(np.repeat(moving_frames(height=16, width=24), 2, axis=1), 2, axis=2)  # no rounding when halved
    assert classifier.classify(blocks).logits == pytest.approx(reference_logits(blocks), abs=1e-5)


@pytest.mark.skipif(not has_bf16(), reason="this processor has no instructions for bf16")
def test_bf16_answers_as_32_bits_do(folder: Path, classifier: Classifier) -> None:
    halved, videos = Classifier.load(folder, precision="bf16"), [moving_frames(seed=seed) for seed in range(4)]
    answers = np.stack([halved.classify(video).logits for video in videos])
    expected = np.stack([classifier.classify(video).logits for video in videos])
    assert answers.dtype == np.float32
    assert answers == pytest.approx(expected, abs=0.1)  # of up to 4
    assert np.abs(answers - expected).max() > 1e-4  # 32 bits are nearer


def test_a_pass_pauses_before_each_block(folder: Path) -> None:
    pauses, classifier = [], Classifier.load(folder)
    expected = classifier.classify(moving_frames()).logits
    classifier.pause_between_blocks(lambda: pauses.append(True))
    assert np.array_equal(classifier.classify(moving_frames()).logits, expected)
    assert len(pauses) == classifier.config.model.depth


def test_bf16_without_instructions_for_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    with pytest.raises(ValueError, match="precision bf16: this processor has no instructions for it"):
        Classifier.load(folder, precision="bf16")
    assert Classifier.load(folder).precision == "32"


def test_path_string_bytes_and_array_answer_alike(classifier: Classifier, video: Path) -> None:
    expected = classifier.classify(video)
    assert expected.logits.dtype == np.float32
    assert np.ptp(expected.logits) > 0.1
    for source in (str(video), video.read_bytes(), read_frames(video)):
        answer = classifier.classify(source)
        assert np.array_equal(answer.logits, expected.logits)
        assert answer.predictions == expected.predictions
    assert classifier.classify(read_frames(video)).video is None


def test_answer_holds_facts_and_timings(classifier: Classifier, video: Path) -> None:
    answer = classifier.classify(video)
    assert answer.video is not None
    assert (answer.video.num_frames, answer.video.fps, answer.video.codec) == (20, 16.0, "h264")
    assert (answer.video.width, answer.video.height) == (48, 32)
    assert answer.timings.decode_ms > 0
    assert answer.timings.inference_ms > 0
    assert answer.num_views == 2
    assert classifier.classify(video, segments=3, crops=3).num_views == 9


def test_predictions_are_ranked_probabilities(classifier: Classifier, video: Path) -> None:
    answer = classifier.classify(video, top_k=10)
    assert {p.label for p in answer.predictions} == set(LABELS)
    chances = [p.probability for p in answer.predictions]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1)
    assert answer.predictions[0].label == LABELS[int(answer.logits.argmax())]
    assert classifier.classify(video, top_k=2).predictions == answer.predictions[:2]


def test_equal_probabilities_stand_in_label_order(classifier: Classifier) -> None:
    ranked = classifier.rank(np.array([1, 2, 2, 1], dtype=np.float32), 4)
    assert [p.label for p in ranked] == ["left", "right", "down", "up"]


@pytest.mark.parametrize("arguments", [{"top_k": 0}, {"segments": 0}, {"crops": 2}])
def test_arguments_out_of_range_are_refused(classifier: Classifier, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        classifier.classify(moving_frames(), **arguments)


def test_a_batch_answers_as_each_video_alone(classifier: Classifier) -> None:
    views = [classifier.prepare(moving_frames(seed=seed), segments=1 + seed % 3) for seed in range(7)]
    alone = [classifier.predict([one])[0] for one in views]
    assert len({logits.tobytes() for logits in alone}) == 7
    for max_clips in (None, 1, 2, 5, 100):
        together = classifier.predict(views, max_clips)
        for one, other in zip(alone, together, strict=True):
            assert other == pytest.approx(one, abs=1e-5)
    backwards = classifier.predict(views[::-1])
    for one, other in zip(alone, backwards[::-1], strict=True):
        assert other == pytest.approx(one, abs=1e-5)
    assert classifier.predict([]) == []


def test_logits_are_the_mean_over_the_views(classifier: Classifier) -> None:
    frames = moving_frames(40)
    first = classifier.classify(frames[:7]).logits
    last = classifier.classify(frames[-7:]).logits
    assert not np.allclose(first, last, atol=1e-3)
    assert classifier.classify(frames).logits == pytest.approx((first + last) / 2, abs=1e-5)


def test_a_short_video_repeats_its_last_frame(classifier: Classifier) -> None:
    short = moving_frames(3)
    padded = np.concatenate([short, np.repeat(short[-1:], 4, axis=0)])
    answer = classifier.classify(short)
    assert answer.num_views == 1
    assert np.array_equal(answer.logits, classifier.classify(padded).logits)
    assert np.isfinite(classifier.classify(short[:1]).logits).all()


def test_views_are_what_the_model_is_given(classifier: Classifier, video: Path) -> None:
    views = classifier.views(video)
    assert views.shape == (2, 3, 4, 16, 16)
    pixels = classifier.prepare(video).frames[1, 2, 3, 4] / 255
    config = classifier.config
    expected = (pixels - np.array(config.clip.mean)) / np.array(config.clip.std)
    assert views[1, :, 2, 3, 4].numpy() == pytest.approx(expected, abs=1e-5)


def test_training_normalises_alike(classifier: Classifier, video: Path) -> None:
    frames = torch.from_numpy(classifier.prepare(video).frames)
    assert torch.equal(classifier.views(video), model_input(frames, classifier.config.clip))


def test_features_lead_to_the_logits_through_the_head(classifier: Classifier, video: Path) -> None:
    features = classifier.features(video)
    assert features.shape == (16,)
    assert features.dtype == np.float32
    head = tiny_model(tiny_config()).head
    with torch.no_grad():
        logits = head(torch.from_numpy(features)).numpy()
    assert logits == pytest.approx(classifier.classify(video).logits, abs=1e-5)


def test_threads_get_the_answers_of_a_single_one(classifier: Classifier) -> None:
    videos = [moving_frames(seed=seed) for seed in range(6)] * 3
    alone = [classifier.classify(frames).logits for frames in videos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frames: classifier.classify(frames).logits, videos))
    for one, other in zip(alone, together, strict=True):
        assert other == pytest.approx(one, abs=1e-6)


def test_answers_carry_no_gradients_and_leave_grad_mode_alone(classifier: Classifier) -> None:
    classifier.classify(moving_frames())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"plain text" * 50, "not-a-video")])
def test_video_errors_pass_through(classifier: Classifier, content: bytes, reason: str) -> None:
    with pytest.raises(VideoError) as error:
        classifier.classify(content)
    assert error.value.reason == reason


def test_load_knows_its_folder(folder: Path, classifier: Classifier) -> None:
    assert classifier.folder == folder
    assert classifier.digest == content_digest(folder)
    assert classifier.labels == LABELS
    with pytest.raises(ValueError, match=r"config\.json"):
        Classifier.load(folder.parent)


def test_a_registered_address_is_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(address: str) -> Path:
        asked.append(address)
        return folder

    tracking = types.ModuleType("mme.tracking")
    tracking.resolve = resolve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mme.tracking", tracking)
    loaded = Classifier.load("models:/tiny@champion")
    assert asked == ["models:/tiny@champion"]
    assert loaded.digest == content_digest(folder)


def test_devices_are_chosen_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_softmax_is_exact_for_large_logits() -> None:
    chances = softmax(np.array([[1000.0, 1000.0, -1000.0], [0.0, np.log(3.0), -np.inf]], dtype=np.float32))
    assert chances == pytest.approx(np.array([[0.5, 0.5, 0], [0.25, 0.75, 0]]))
