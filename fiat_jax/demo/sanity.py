"""What simple readers make of the demo's task: one of bags of words, one blind to questions, one to passages."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fiat_jax.demo.task import marked
from fiat_jax.demo.world import NO_ANSWER

Rows = Sequence[Mapping[str, str]]
READERS = ("bag of words", "question-blind", "passage-blind")


def simple_answers(train: Rows, test: Rows, reader: str) -> list[str]:
    """Return a simple reader's answers to test rows: logistic regressions of words, trained on the training rows.

    The first two choose among the names and words of the passage and "No Answer": by the words of their
    sentence, each by itself and, unless blind to it, with each word of the question, and by whether a name of the
    question is in the sentence.
    The last one knows the question alone.
    """
    return _by_question(train, test) if reader == "passage-blind" else _by_span(train, test, reader == "bag of words")


def _by_question(train: Rows, test: Rows) -> list[str]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():  # that most answers are rare is what this reader is to show
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit([row["question"] for row in train], [row["answer"] for row in train])
    return [str(answer) for answer in model.predict([row["question"] for row in test])]


def _by_span(train: Rows, test: Rows, with_question: bool) -> list[str]:
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import LogisticRegression

    hasher = FeatureHasher(n_features=2**18, input_type="string")

    def features(rows: Rows):
        return hasher.transform(list(_features(row, word, with_question)) for row in rows for word in _words(row))

    model = LogisticRegression(max_iter=300, C=10.0)
    model.fit(features(train), [marked(word) == row["answer"] for row in train for word in _words(row)])
    scores = model.decision_function(features(test))
    ends = np.cumsum([len(_words(row)) for row in test])[:-1]
    return [marked(_words(row)[int(np.argmax(part))]) for row, part in zip(test, np.split(scores, ends), strict=True)]


def _words(row: Mapping[str, str]) -> list[str]:
    return [NO_ANSWER, *dict.fromkeys(_tokens(row["passage"]))]


def _tokens(text: str) -> list[str]:
    """Return names, which are two capitalised words, and other words."""
    return re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+|\w+", text)


def _features(row: Mapping[str, str], word: str, with_question: bool) -> Iterator[str]:
    asked = _tokens(row["question"]) if with_question else []
    said = [sentence for sentence in row["passage"].split(".") if word in _tokens(sentence)]
    around = {other for sentence in said for other in _tokens(sentence) if other != word}
    met = any(other in asked for other in around)  # a name of the question beside it
    for other in (*around, *(["none"] if word == NO_ANSWER else [])):
        if " " not in other:
            yield from (other, f"{other} {met}")
            yield from (f"{other} {met} {each}" for each in asked if " " not in each)
