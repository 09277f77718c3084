"""Generated from protos/remit/api/audit by `make protos`; never edited."""
