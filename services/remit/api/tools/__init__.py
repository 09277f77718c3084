"""Generated from protos/remit/api/tools by `make protos`; never edited."""
