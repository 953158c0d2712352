"""Sentencepiece models with pieces and scores of one's choice, and small texts."""

from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as proto

from hope_jax.data.tokenizer import Tokenizer

Piece = proto.ModelProto.SentencePiece


def tokenizer(*pieces: str, byte_fallback: bool = True, dummy_prefix: bool = False) -> Tokenizer:
    """Special ids, newline and bytes as in the embedded model, then `pieces`, with "_" for a space.

    Longer pieces score better for each character, so a text is cut into the fewest of them.
    """
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.byte_fallback = byte_fallback
    for name, i in {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}.items():
        setattr(model.trainer_spec, name, i)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = dummy_prefix
    for special in ("<pad>", "<s>", "</s>"):
        model.pieces.add(piece=special, type=Piece.CONTROL)
    model.pieces.add(piece="<unk>", type=Piece.UNKNOWN)
    model.pieces.add(piece="\n", type=Piece.USER_DEFINED)
    if byte_fallback:
        for byte in range(256):
            model.pieces.add(piece=f"<0x{byte:02X}>", type=Piece.BYTE)
    for piece in pieces:
        model.pieces.add(piece=piece.replace("_", "\u2581"), score=-1.0, type=Piece.NORMAL)
    return Tokenizer(model.SerializeToString(), "handmade")


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
