"""Programs that are not ours as arms of a trial: peers in environments of their own, and what speaks the protocol."""
