import pytest

from fiat_jax.store import Provenance, ReasoningStore, Record


@pytest.fixture
def provenance():
    return Provenance(model={"name": "big", "revision": "1"}, prompt_hash="ab" * 32, decoding={"temperature": 0.0})


@pytest.fixture
def record(provenance):
    """Makes the record of row N."""

    def make(number, sample=0, **changes):
        fields = {
            "text": f"Because {number}. So the answer is yes.",
            "rationale": f"Because {number}.",
            "answer": "yes",
        }
        fields |= {"finish_reason": "stop", "prompt_tokens": 30, "completion_tokens": 8, "seed": number} | changes
        return Record(provenance.set_key, f"row{number}", sample, f"train-{number}", **fields)

    return make


@pytest.fixture
def store(tmp_path):
    return ReasoningStore(tmp_path / "store")
