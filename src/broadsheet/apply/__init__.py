"""Using a paper on a corpus: functions mapped over documents, through kills, no line lost or doubled."""
