"""Generated from protos/remit/api/audit/v1 by `make protos`; never edited."""
