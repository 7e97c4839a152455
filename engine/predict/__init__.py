"""Model outputs to answers: prediction files, labelling of large files, several models as one."""
