"""Will composed batches help on these data? A dataset and a model in, figures and a recommendation out; nothing is trained.

`dataset_facts` reads all rows, `sample` embeds some, `plan_figures` plans these, `recommend` holds the rule.

May import: `rows`, `embeddings`, `planners`, `batches`, `losses`, `training`.
"""
