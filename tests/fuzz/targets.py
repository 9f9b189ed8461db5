"""Table of all fuzz targets."""

import warnings

from classification.study.file import read_study
from robust_backbones.detection import config
from robust_backbones.detection.inspect import curves
from tests.fuzz.annotations import (
    COCO,
    PREDICTIONS,
    XML_WORDS,
    prediction_seeds,
    read_coco,
    read_drawn,
    read_predictions,
    read_voc,
    read_yolo,
    voc_seeds,
    yolo_seeds,
)
from tests.fuzz.cases import JSON_WORDS, Target, json_seed
from tests.fuzz.checkpoints import (
    PICKLE_WORDS,
    pickle_seeds,
    read_weight_file,
    safetensors_seeds,
    torch_seeds,
)
from tests.fuzz.pictures import image_seeds, read_images
from tests.fuzz.tasks import (
    archive_seeds,
    index_seeds,
    read_archive,
    read_indexes,
    read_shards,
    read_table,
    shard_seeds,
    table_seeds,
)
from tests.fuzz.texts import (
    YAML_WORDS,
    config_seeds,
    metrics_seeds,
    read_results,
    result_seeds,
    study_seeds,
)

warnings.simplefilter("ignore")


TARGETS = {
    "checkpoint": Target(
        torch_seeds(True), read_weight_file, PICKLE_WORDS + (b"PK\3\4", b"PK\1\2")
    ),
    "checkpoint-legacy": Target(torch_seeds(False), read_weight_file, PICKLE_WORDS),
    "checkpoint-pickle": Target(pickle_seeds, read_weight_file, PICKLE_WORDS),
    "checkpoint-safetensors": Target(safetensors_seeds, read_weight_file, JSON_WORDS),
    "config": Target(config_seeds, lambda _, path: config.load_config(path), YAML_WORDS),
    "study": Target(study_seeds, lambda _, path: read_study(path), YAML_WORDS),
    "result": Target(result_seeds, read_results, JSON_WORDS),
    "metrics": Target(metrics_seeds, lambda _, path: curves.read(path), JSON_WORDS),
    "coco": Target(lambda _: [json_seed("x.json", COCO)], read_coco, JSON_WORDS),
    "voc": Target(voc_seeds, read_voc, XML_WORDS),
    "yolo": Target(yolo_seeds, read_yolo, YAML_WORDS),
    "predictions": Target(prediction_seeds, read_predictions, JSON_WORDS),
    "predictions-drawn": Target(
        lambda _: [json_seed("x.json", PREDICTIONS)], read_drawn, JSON_WORDS
    ),
    "index": Target(index_seeds, read_indexes, (b"\t", b"\n", b"/", b"..", b" ", *JSON_WORDS)),
    "table": Target(table_seeds, read_table, (b",", b";", b'"', b"\n", b"/", b"..", b"split")),
    "shards": Target(shard_seeds, read_shards, (b"ustar", b"../", *JSON_WORDS)),
    "archive": Target(archive_seeds, read_archive, (b"ustar", b"../", b"train/")),
    "image": Target(
        image_seeds,
        read_images,
        (
            b"IHDR",
            b"IDAT",
            b"acTL",
            b"zTXt",
            b"Exif\0\0",
            b"\xff\xd8",
            b"\xff\xda",
            b"\xff\xc2",
            b"GIF89a",
            b"VP8X",
            b"II*\0",
            b"MM\0*",
        ),
    ),
}
