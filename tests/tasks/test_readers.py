import csv
import subprocess
import sys

import pytest

from fiat_jax.errors import UserError
from fiat_jax.tasks.readers import read_source


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_source(str(path)))


def test_a_tsv_takes_quotes_as_they_stand(tmp_path):
    rows = read(tmp_path, "a.tsv", b'id\ttext\n1\tshe said "hi\n\n2\t"\n')
    assert rows == [{"id": "1", "text": 'she said "hi'}, {"id": "2", "text": '"'}]
    assert rows[1].where.endswith("a.tsv line 4")


def test_a_csv_cell_may_span_lines_and_be_long(tmp_path):
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    rows = read(tmp_path, "a.csv", f'id,text\n1,"one,\ntwo"\n2,{long}\n'.encode())
    assert [row["text"] for row in rows] == ["one,\ntwo", long]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("id,text\n1,a,b\n", "line 2: 3 cells, but the header has 2"),
        ("id,id\n1,2\n", "line 1: a column name appears twice"),
        ("id,text\n", "holds no rows"),
        ('id,text\n1,"open', "line 2"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path, content, match):
    with pytest.raises(UserError, match=match):
        read(tmp_path, "a.csv", content.encode())


def test_a_saved_hugging_face_data_set_gives_rows_with_the_names_of_labels(tmp_path):
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "saved")
    rows = list(read_source(f"hf://{tmp_path / 'saved'}/train"))
    assert rows == [{"text": "a", "label": "yes"}, {"text": "b", "label": None}]
    with pytest.raises(UserError, match="datasets cannot read it"):
        list(read_source(f"hf://{tmp_path / 'saved'}/test"))


def test_a_prepared_tfds_data_set_is_read_without_tensorflow(tmp_path):
    script = f"""
import sys
import tensorflow_datasets as tfds
from fiat_jax.tasks.readers import read_source

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        kinds = dict(text=tfds.features.Text(), label=tfds.features.ClassLabel(names=["no", "yes"]))
        kinds["choices"] = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

    def _split_generators(self, manager):
        return dict(train=self._generate_examples())

    def _generate_examples(self):
        yield 0, dict(text="räntää", label=1, choices=["a", "ö"])

Tiny(data_dir={str(tmp_path)!r}, file_format="array_record").download_and_prepare()
rows = list(read_source("tfds://{tmp_path}/tiny/1.0.0/train"))
assert rows == [dict(text="räntää", label="yes", choices=["a", "ö"])], rows
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tfds_data_set_that_is_not_prepared_says_how_to_prepare_it():
    with pytest.raises(UserError, match=r"tfds build no_such_set --file_format=array_record"):
        list(read_source("tfds://no_such_set/train"))
