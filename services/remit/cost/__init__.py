"""Cost: money is held before an effect and settled after it, and no budget is ever exceeded.

It owns the ledger (holds, postings, balances, budgets) and the price list. It takes the accounts
that pay from the verified remit, never from a field of a request. It must never free a hold by its
own clock: only the service that reserved, or its sweeper, settles or releases. It must never admit
what would make pending and posted money exceed a limit, and never change a transfer once written.
"""
