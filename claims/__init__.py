"""The paper's claims, each with the runs that could refute it: what study.py does. To be skipped at first
reading."""
