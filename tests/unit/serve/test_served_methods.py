"""Methods that a request may ask for: engines that open on demand, with the text of plain decoding."""

from server_calls import Serving, chunks, posted

ASKED = {"prompt": "xyz xyz xyz", "temperature": 0, "max_tokens": 40, "ignore_eos": True}


def test_another_method_opens_at_its_first_request(serving: Serving) -> None:
    server = serving(max_batch=2)
    methods = server.http.get("/outrider/info").json()["methods"]
    assert methods[:2] == ["none", "ngram"]
    assert "suffix" in methods
    assert "eagle3" not in methods, "no head is shipped for this target"
    expected = posted(server, "completions", **ASKED, outrider_method="none")["choices"][0]["text"]
    lanes = server.service.worker._lanes
    assert list(lanes) == ["ngram"]
    stream = chunks(server, "completions", **ASKED, outrider_method="suffix", return_steps=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in stream) == expected
    assert any(token["by"] == "draft" for chunk in stream for token in chunk["outrider"]["tokens"])
    assert list(lanes) == ["ngram", "suffix"]
    assert lanes["suffix"].engine.batch.num_slots == 1


def test_few_engines_are_open_at_the_same_time(serving: Serving) -> None:
    server = serving()
    worker = server.service.worker
    opener = worker._openers["suffix"]
    worker._openers = {**worker._openers, "b": opener, "c": opener}
    server.service.methods = (*server.service.methods, "b", "c")
    texts = [
        posted(server, "completions", **ASKED, outrider_method=name) for name in ("suffix", "b", "c", "suffix", "ngram")
    ]
    assert len({answer["choices"][0]["text"] for answer in texts}) == 1
    assert len(worker._lanes) == 3
    assert next(iter(worker._lanes)) == "ngram"
