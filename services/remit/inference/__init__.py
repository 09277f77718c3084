"""The inference service: the one place of the mesh from which models are called.

It owns the declared models, their engines and the keys of their providers, and the claims of model
calls. Every call passes the effect gate. It must never call a model outside the gate, never let a
provider's key into a log, an error or an answer, and never run a tool: it only reports which tools
a model asks for.
"""
