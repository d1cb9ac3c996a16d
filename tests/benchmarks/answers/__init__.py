"""How many questions a model answers from their documents, by prompt, order of the documents and shape of question.

`make bench-answers` runs `__main__`. `questions` reads the two sets, `tuning.yaml` and `held_out.yaml`, and says which
documents go with a question; `prompts` has what is compared; `asking` asks a running service; `outcomes` tells right,
refused and wrong apart; `figures` makes shares with standard errors of it, `report` tables, and `plot` a picture.

A prompt, an order or a setting is chosen on the set `tuning`. The set `held_out` is for what is already chosen: a run
with it takes two variants at most, and shows no answers.
"""
