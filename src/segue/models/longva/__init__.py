"""LongVA: `family` says what it is, `model` computes it, `processor` and `preprocessing` make prompts and pixels."""
