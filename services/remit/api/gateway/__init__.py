"""Generated from protos/remit/api/gateway by `make protos`; never edited."""
