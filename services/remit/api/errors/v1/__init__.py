"""Generated from protos/remit/api/errors/v1 by `make protos`; never edited."""
