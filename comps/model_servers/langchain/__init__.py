"""LangChain between the core and a model server; it knows `remote`, never the other way round."""
