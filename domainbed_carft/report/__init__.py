"""``carft report``: what a sweep came to, as one page and its figures.

``commands`` parses, ``building`` gathers what the page has to say and ``writing`` puts it into a
folder. In between: ``frames`` has the checkpoints as pandas frames, ``figures`` draws them,
``examples`` looks at pictures (the only part that needs torch), ``missing`` and ``repeating`` list
what is missing and what it takes to repeat the sweep, ``page`` renders. What is selected, averaged
and told missing is ``collect``'s.
"""
