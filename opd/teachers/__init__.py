"""Teachers read what the student wrote: local models, copies of the student, servers, stored answers, fakes."""
