"""Guides: what the page's surveys say, as data that answers. Read by tomllib; nothing heavy is imported.

- `advice`: a few answers to papers of the page, each with its reason, its source and what is recorded of it.
- `flow`: a large model as it is, or a small one tuned? The decision flow of one survey, question by question.
- `maps`: each survey as a tree of branches, works and papers of the page.
- `longcontext`: what a long input costs a model, and which methods apply.

`advice.toml`, `rules.toml` and `facets.toml` are the adviser's questions, rules and what papers need; `surveys/` holds
a tree a file; `long_context.toml` what each method for long inputs changes.
"""
