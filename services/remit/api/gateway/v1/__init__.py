"""Generated from protos/remit/api/gateway/v1 by `make protos`; never edited."""
