"""How transfer is measured: protocols, fixed features, fine-tuning, probes."""
