"""Generated from protos/remit/api/cost/v1 by `make protos`; never edited."""
