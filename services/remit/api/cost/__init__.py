"""Generated from protos/remit/api/cost by `make protos`; never edited."""
