"""Records: a file for each request that asks for text, with what is needed to understand it later, or to run it again.

They are made where a request, its plan and its answer come together, in the `TextGenerator`: without `record`, nothing
of this is there. Writing is done in a thread, beside the event loop.
"""
