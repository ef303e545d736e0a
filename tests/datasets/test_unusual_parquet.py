"""Parquet that this version of Arrow cannot read is no damaged file: one line says which column needs what."""

import base64
import zlib

import pytest

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.reading import read_log
from mlet_tf.errors import InputError

SCHEMA = ClickLogSchema.from_dict({"name": "pairs", "label": "y", "categoricals": ["c"], "separator": ","})
NUMBERS, WORDS = [b"7", b"8", b"7", b"9"], [b"a", b"b", b"a", b"c"]
# Files of pyarrow 21 with the columns `y` (0, 1, 1, 0) and `c`, compressed and in base 85. In the one with LZO the
# number of the codec was changed in the footer.
FILES = {
    "integers split into streams of bytes": (
        NUMBERS,
        r"column 'c' \(type INT64, encoding BYTE_STREAM_SPLIT, RLE, codec UNCOMPRESSED: ",
        (
            "c-jka3^EjD5cLuD(GleUGT21fWEdD2n1GmrkpT)A(P$VzXcR)#$j-se$$$rlvPjyPGDxr$CugMQCW^8E1yq?N7%QQ4GJ_b0q"
            ">QAF8iNc_r79bPBv4KiC@5AWR;0$^DI*H9nu)<ilTA{MfdgnDOr;P|Wini46<DPZib}C3jA9&W96*XeL!ltCsIWA(L^rvhKs"
            "T|dD8F2xEVZaOGe1wk$WYHf&p=WK=qHf3HUe<~FsK0eks^K"
        ),
    ),
    "texts behind their lengths": (
        WORDS,
        r"column 'c' \(type BYTE_ARRAY, encoding DELTA_LENGTH_BYTE_ARRAY, RLE, codec UNCOMPRESSED: ",
        (
            "c-mdiy$ZrG5CGsy2_Zw)3kEuLX{b;|1veK*p@{efF%)!AYy3keU(3x$^HOxsgX2Q@?s8-?T@Dej!m30`2Z165fP_*q_yqf_-"
            "ymOL5gXNS<AZUYw8X8PM{Xu#=!m0V*IS1ikmpH<-2hdrK8Gr{YH3naT1d&~0t^YHOC5Bua+YFzE`do`7z>hol!~Mx>03G1b9"
            "-;4ijoF?t$r~rt)v1)*0^vu*QcIunw|?`f6Xp+IBxd4Y&7f-`U6waI&q^X<$^xw4SF;rIs"
        ),
    ),
    "a codec": (
        WORDS,
        r"column 'c' \(type BYTE_ARRAY, encoding PLAIN, RLE, codec LZO: ",
        (
            "c-jka3^EjD5cLuD(GleUGT21fWEdD2n1GmrkpT)A(P$U|sy7kUL(wQL$-ux;b|6Xexsqt5$~2X}muyN)Z&`}6NZOb(NU#+rX"
            "QbvPin1_>vZyjiFjg{%@_^`MRR$lBZZQr?8A%;A1{t7wRW=4mpbAl-pjeSuks61mj3~%PCI%Z#Hc2%G4xoCFN*<`nWKlMt$|"
            "$iAwJL;4pn)*8VrLk|IMg`AjxjQ5C=?_X6_%!!=q48w=q45w<(Dgzr4|)u=I1FG8R{A68A$2?oda^wP9P2dh7kY<i7Dy"
        ),
    ),
    "half floats": (
        NUMBERS,
        r"has a column of a type that Arrow [\d.]+ does not know|should hold text or integers\. Received: half",
        (
            "c-n1{O$&lR5QayQWl!E_abXW$S_)J&=;kFa7IcvQfrwDhhpl~3r+!q>pX<;Vc8LaF-k0GShM8izOb~E^ivT$VhD-r~P2v{xW"
            "&QZKh*zlo4dyU|{60fRrW5d3TdnGCi4LGMus!Pv=%Ry^s?CcA1eZz%8WiyZ29gM*rZB>2K3CW+vLPKYseu#Uk#0{`A2Jh}zW"
            "pJ^!xCI`G8p<zX%46Q7*<Uamd5Na{<${odcX6>Nfbx14CsRHh$pF_$GibCc_cC"
        ),
    ),
    "views of texts": (
        WORDS,
        r"has a column of a type that Arrow [\d.]+ does not know|should hold text or integers\. Received: string_view",
        (
            "c-n1}!A`<J5Qe9OG<)E>O*iR*3r$P_!Jsh)4^yl{M5SDe+-lRH7zK(-^v!$+AH|1oX1h>g{FB}JGyCoAB(ozNw<XA-9M+{EV"
            "@ulufD$cXfsyqmZbW=XcK*4@V9eY7)+Ms6x`*J}tK=blj%68SxmI$m50Dj(NezZvz!Az*bss$9Yc?n%Bqg29$$T;JBtKe$?w"
            "+lD5X3WCF=V32i8Jv(3z7<MSm)bvgfA$7^4toJ$2Yepc|Y!twa+@5A}PXLmxyZ&rg)Ax#hyOGAV9og(?cBSL=iE!xzqdgjEW"
            "wU3GYIk)I~zvifu46d}yAIFo?MR1!96{#bK^!prJnQwrXtu$uzO%`+e@)DA*xS!L2UhZ26YHHj>4n5og(aU42ip)#Lo7deCm"
            "Rnk`kQaqvXGXnZ63Cci~uXVC"
        ),
    ),
    "an encrypted column": (
        WORDS,
        r"is an encrypted Parquet file: decrypt it first",
        (
            "c-jka3^EjD5cLuD(GleUGT21fWF$Bk86ZG{1Il0!W6;1N3It3*43}YGM5AHA9EbyjWnJ6W*U2y25_#<1jt$;M)@v$an^z^xF"
            "I%*;pz-?a)y&pKvCp_ttBeh9+pM}g=YB&@qsh#vW<aeKWwBn;C#t$F%tETZCQ9_Izq!b@`lmx+wD?k`keoiA&l|TspS>bk;X"
            "-8dla}jOL|-3gd46=cD2t?xDT4%CadJj#ZlWj)gD8tClLTWWgD4M(PF7{`kpX#)LsCXkM~y)Ss9u$gK@zA!6euWmj1h>`IBZ"
            "A=4oMkc5Hg4|G1zFbNvbh`BtYi!K+R1Co4blp>=mQhImQ~G#ZXl-Iv`nzNlevB*{PMji6yB;nTa_el?ACvR!RZhz9EK6I!c*"
            "&K;gW^oZyoDqQrEdOi58`Dp0uCEk7S9<DFWmWR;efQw$W#O)Q3pc)9=$NCs*yFG?&ZNKJ8Z^#%%<q*v)Xhx<kZ7#L)hTLc!G"
            "7=%=2R}?vB8#qQ4WI0DBrhA45n57q37)NDfItCVbCuTV2<hf@Ar)1j#%}U8HP0C3P2bq|emkx6W(BZCm$wid~C7JnoFsm&qO"
            "ilC)ElfR&ohn@OytSiz-K!!TZEX=Q@&>!e)zUM~y}+zEEy>a^Ak4%dDJn@ns2r%S78t&vfuJ<jx3FY$@qu@j6C-MD88-{P;C"
            "s5}u=uHI!K=6AAMkCTA@xtgr1Zzs!%x-MigIspH<5SI*0z|l?>@VDc5k;XZ=Sx*&S_E-jyqm|+h%t5(gSuM2C)xJVjOB5VjG"
            "x67#K7Z3KEM7OH)g9lM4!T6N`%S%N5E}i;97MQ7|&pGte`T)Bz?I5R%d0IISyv@`11IA|asbj!_(G(D2JG_RK3TNz6-51qYp"
            "rtD9q}PlytVOlXh~iWF)@r=dr5exzqnX|AhpSYfeexwns@UuJqhpt(`HPn3(PQ)RJlmTN(7rMY=#SYmczYH~$Dfsdt;SGt>z"
            "QE)zq5nYr5Og;IDPCnsj&Y>0ICi-TjX$FCq5nYh)UZ`*CmYd@4Q(k2n?CS3r=AI3S=uMTk_qN`0cDlmhc;a5nRzuO3=h!C6W"
            "@oTH`?K{lGXp~au&4q6A`M>n"
        ),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_right_or_refused_with_what_it_needs(tmp_path, name):
    expected, words, packed = FILES[name]
    path = tmp_path / "log.parquet"
    path.write_bytes(zlib.decompress(base64.b85decode(packed)))
    try:
        tables = list(read_log(str(path), SCHEMA, max_reject_share=0))
    except InputError as error:
        assert "damaged" not in str(error) and "\n" not in str(error)
        with pytest.raises(InputError, match=words):
            raise
    else:  # A newer Arrow.
        assert [row["c"] for table in tables for row in table.to_pylist()] == expected
        assert [row["y"] for table in tables for row in table.to_pylist()] == [0, 1, 1, 0]


def test_an_encrypted_footer_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    path.write_bytes(b"PARE" + bytes(40) + b"PARE")
    with pytest.raises(InputError, match="is an encrypted Parquet file: decrypt it first"):
        list(read_log(str(path), SCHEMA))
