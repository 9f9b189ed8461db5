"""Train a classifier, standard or adversarial -> checkpoint.pt, metrics.jsonl, result.json."""
