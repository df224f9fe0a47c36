"""Verdicts of the comparison by kind of answer: right ones rewarded, wrong ones not."""

import pytest

from jaxrl_llm.rewards import equivalence, math_answer

# Each line: an answer in a box, and ground truths that it equals or does not equal.
TIMES_OF_DAY_EQUAL = [
    ('6:4', '3:2'), ('1:2:3', '2:4:6'), ('3:30', '3:30 p.m.'), ('3:30 PM', '3:30 p.m.'),
    ('03:30', '3:30'), ('15:30', '3:30 pm'), ('5 pm', '5:00 p.m.'), ('6:12', '1:2'),
    ('1:20', '1/20'), ('12:00 p.m.', 'noon'), ('6:00 AM', '6 a.m.'), ('3:1', '3'),
    ('10:5', '2:1'),
]  # fmt: skip
TIMES_OF_DAY_DIFFERENT = [
    ('6:00', '5:00'), ('0:45', '0:30'), ('2:30', '1:15'), ('12:00', '6:00'), ('6:00', '06:30'),
    ('6:00 am', '6:00 pm'), ('6:00', '6:01'), ('9:00', '3:00'), ('10:00', '1:0'),
    ('0:00', '5:00'), ('3:30', '1/10'), ('6:0', '5:0'), ('15:30', '3:30 am'),
    ('noon', 'midnight'), ('1:02:03', '2:04:06'), ('8:00', '4:00 p.m.'),
]  # fmt: skip

LETTER_CASE_EQUAL = [
    ('a', 'A'), ('(b)', 'B'), ('YES', 'yes'), ('tuesday', 'Tuesday'), ('A, C', 'C, A'),
    ('Option b', 'B'), ('a, c', 'A, C'), ('No Solution', 'no solution'),
]  # fmt: skip
LETTER_CASE_DIFFERENT = [
    ('3r^2', '3R^2'), ('K+1', 'k+1'), (r'\frac{R-r}{2}', '0'), ('(a,B)', '(a,b)'),
    ('x+y=5', 'X+Y=5'), (r'\omega t+1', r'\Omega t+1'), (r'\{A,b\}', r'\{a,b\}'),
    (r'\delta', r'\Delta'), ('x = A', 'x = a'), ('V', 'v'), ('mX', 'mx'),
    ('3R^2 square units', '3r^2 square units'), (r'\sqrt{N}', r'\sqrt{n}'), ('f(X)', 'f(x)'),
    ('F(x)', 'f(x)'), ('x_N', 'x_n'), ('[a,B]', '[a,b]'),
    (r'\begin{pmatrix}A&b\end{pmatrix}', r'\begin{pmatrix}a&b\end{pmatrix}'), ('y>A', 'y>a'),
    ('X', 'x'), (r'2\Gamma', r'2\gamma'), ('P=2L', 'P=2l'), ('I', 'i'), ('3+4I', '3+4i'),
    ('Rr', 'rr'), ('T-t', '0'), ('a/A', '1'),
]  # fmt: skip

OPTIONS_EQUAL = [
    ('(A) 5', 'A'), ('(A) 5', '5'), (r'\text{(B)}', 'B'), ('(B) 12 apples', 'B'), ('A.', 'A'),
    ('(A) 5', '(A) 5'), ('B) 24', '24'), ('(C) x+1', 'x+1'), ('C: 7', 'C'), ('Option A', 'A'),
    (r'\textbf{(C)}', 'C'), (r'\textbf{(C) }12', 'C'), ('(D) none of the above', 'D'),
    (r'(E) \frac{1}{2}', '0.5'), ('(a) 3', '3'),
]  # fmt: skip
OPTIONS_DIFFERENT = [
    ('(A) C', 'C'), ('(A) or (B)', 'A'), ('A. or B.', 'A'), ('(A) is wrong', 'A'),
    ('(A) 5 or (B) 6', 'A'), ('A or B', 'A'), ('A/B', 'A'), ('A, B', 'A'), ('A and B', 'B'),
    ('not A', 'A'), ('(A)(B)', 'A'), ('(A), (B)', 'B'), ('A) 5 B) 6', 'A'), ('(A) maybe', 'A'),
    ('either A or B', 'A'), ('A or C', 'C'), ('(A) not correct', 'A'), ('(A) but also (C)', 'A'),
    ('A & B', 'A'), ('A; B', 'A'), ('(A) 5, (B) 6', 'B'), ('(A) 5, (B) 6', '6'),
    ('neither A nor B', 'A'), ('all but A', 'A'), ('anything but A', 'A'), ('A?B', 'A'),
    ('AB', 'A'), ('(A) or B', 'A'), ('(A)/(B)', 'A'), ('A. B', 'A'), ('A: no. B: yes', 'A'),
    ('(A) B', 'B'), ('A is false', 'A'), ("isn't A", 'A'), ('A, maybe B', 'A'),
    ('(A) 5', '(B) 5'), ('A or (B) 6', '6'), ('option A or option B', 'A'),
    ('(A) is incorrect, (B) is correct', 'A'), (r'\text{(A) or (B)}', 'A'),
    (r'A \text{ or } B', 'B'), (r'(A)\&(B)', 'A'), ('(A) | (B)', 'A'),
]  # fmt: skip

APPROXIMATIONS_EQUAL = [
    (r'\frac{22}{7} \approx 3.14', '22/7'), (r'\frac{22}{7} \approx 3.14', '3.14'),
    (r'\sqrt{2}\approx 1.414', r'\sqrt2'), (r'\sqrt{2}\approx 1.414', '1.414'),
    (r'x = \frac13 \approx 0.333', '1/3'), (r'x = \frac13 \approx 0.333', '0.333'),
    (r'1/3 \approx 33.3\%', '1/3'), (r'1/3 \approx 33.3\%', '33.3%'),
    (r'\pi\approx 3.14', '3.14'), ('about 15', '15'), (r'\approx 15', '15'),
    (r'x \approx 15', '15'), (r'\sqrt{2} \approx 1.4', '1.4'), (r'12.4 \approx 12', '12'),
    (r'\sqrt{2} (about 1.41)', r'\sqrt{2}'), (r'2\sqrt{3} = \sqrt{12} \approx 3.46', r'2\sqrt3'),
    (r'2\sqrt{3} = \sqrt{12} \approx 3.46', '3.46'), (r'12345 \approx 12000', '12000'),
    ('3+4=7', '7'), ('x = 2+3 = 5', '5'), (r'A = \pi r^2 = 9\pi', r'9\pi'), ('5 = x', '5'),
    (r'6.02\times10^{23} \approx 6\times 10^{23}', r'6\times 10^{23}'),
]  # fmt: skip
APPROXIMATIONS_DIFFERENT = [
    (r'\frac{12}{1} \approx 15', '15'), (r'\sqrt{2}\approx 3', '3'), (r'x=12 \approx 15', '15'),
    (r'12 \approx 15', '12'), (r'\pi \approx 3.15', '3.15'), (r'\sqrt{2} \approx 1.42', '1.42'),
    ('12, about 15', '15'), ('12 or about 15', '15'), ('12 (about 15)', '15'),
    (r'5 \approx 7', '7'), (r'\frac13 \approx 0.34', '0.34'), (r'12 \simeq 15', '15'),
    ('12 ≈ 15', '15'), (r'\sqrt2 \approx 1.4 \approx 2', '2'), ('12 roughly 15', '15'),
    ('12 = 15', '15'), ('12 = 15', '12'), ('x=12=15', '15'), ('Total = 12 = 15', '15'),
    ('x = 12 = 15', '12'), (r'\sqrt2=2', '2'), (r'1.414 = \sqrt{2}', r'\sqrt{2}'),
]  # fmt: skip

SCRIPTS_EQUAL = [
    ('8点', '8'), ('γ', r'\gamma'), ('Γ', r'\Gamma'), ('θ', r'\theta'), ('φ', r'\phi'),
    ('φ', r'\varphi'), ('ε', r'\epsilon'), ('ω', r'\omega'), ('Ω', r'\Omega'), ('Δ', r'\Delta'),
    ('2α+1', r'2\alpha+1'), ('是', '是'), ('да', 'Да'), ('café', 'CAFÉ'), ('café', 'café'),
    ('5个', '5'), ('３', '3'), ('٣', '3'), ('αβ', r'\alpha\beta'), ('Σ', r'\Sigma'),
    ('λ', r'\lambda'), ('ψ', r'\psi'), ('5 μm', '5'), ('5 μm', '0.005 mm'), ('25℃', '25'),
    ('σ²', r'\sigma^2'), ('π/2', r'\frac{\pi}{2}'), ('x̄', r'\bar{x}'), ('5 яблок', '5'),
]  # fmt: skip
SCRIPTS_DIFFERENT = [
    ('上午8点', '下午8点'), ('3月', '3日'), ('2μ', '2σ'), ('é', 'e'), ('Жук', 'Дом'),
    ('да', 'нет'), ('是', '否'), ('星期一', '星期二'), ('α', 'β'), ('Γ', 'γ'), ('Δ', r'\delta'),
    ('∠A', 'A'), ('△ABC', 'ABC'), ('¬A', 'A'), ('résumé', 'resume'), ('ñ', 'n'), ('3人', '3個'),
    ('苹果', '香蕉'), ('8x点', '8'), ('x²点', 'x²'), ('أ', 'ب'), ('Å', 'A'),
]  # fmt: skip

BOUNDS_EQUAL = [
    ('the number 18', '18'), ('exactly 18', '18'), ('18 apples', '18'), ('18 dollars', '18'),
    ('eighteen', '18'), ('18 units', '18'), ('a total of 18', '18'), ('18 left over', '18'),
    ('18 people', '18'), ('18 years old', '18'), ('18 square feet', '18'), ('18 in total', '18'),
    ('18 hours', '18'), ('18 min', '18'), ('18 times', '18'), ('18 feet', '18'),
    ('18 dollars per day at the market', '18'), ('18 miles per hour', '18'), ('18 more', '18'),
    ('the answer is 18', '18'), ('18 cm^2', '18'), ('It is 18', '18'),
    ('number of apples is 18', '18'), ('18 points', '18'), ('18 boxes of apples', '18'),
    ('18.', '18'), ('18 years', '18'), ('18', '18'), ('18 ways', '18'),
]  # fmt: skip
BOUNDS_DIFFERENT = [
    ('fewer than 18', '18'), ('anything but 18', '18'), ('over 18', '18'), ('up to 18', '18'),
    ('at least 18', '18'), ('18+', '18'), ('18 or more', '18'), ('more than 18', '18'),
    ('less than 18', '18'), ('at most 18', '18'), ('no more than 18', '18'), ('under 18', '18'),
    ('above 18', '18'), ('below 18', '18'), ('not 18', '18'), ('other than 18', '18'),
    ('18 or fewer', '18'), ('18 at least', '18'), ('18 at most', '18'), ('18 minimum', '18'),
    ('18 max', '18'), ('18 and above', '18'), ('minimum of 18', '18'), ('maximum of 18', '18'),
    ('a maximum of 18', '18'), ('exceeds 18', '18'), ('greater than 18', '18'), ('<18', '18'),
    ('>18', '18'), ('≥18', '18'), (r'\ge 18', '18'), ('x>18', '18'), ('between 18', '18'),
    ('within 18', '18'), ('half of 18', '18'), ('double 18', '18'), ('twice 18', '18'),
    ('-18', '18'), ('minus 18', '18'), ('18 squared', '18'), ('18 factorial', '18'),
    ('18 or so', '18'), ('18 is wrong', '18'), ('not equal to 18', '18'), (r'\ne 18', '18'),
    ("isn't 18", '18'), ('18 is not right', '18'), ('never 18', '18'), ('18-', '18'),
    ('almost 18', '18'), ('all except 18', '18'), ('18 plus', '18'), ('negative 18', '18'),
    ('18 but maybe twenty', '18'), ('maybe 18', '18'), ('18 or 19', '18'), ('17 or 18', '18'),
    ('18?19', '18'), ('the square of 18', '18'), ('the opposite of 18', '18'),
    ('18 upwards', '18'), ('18 and up', '18'), ('from 18', '18'), ('before 18', '18'),
    ('after 18', '18'), ('until 18', '18'), ('18 years old or older', '18'),
    ('at minimum 18', '18'), ('no fewer than 18', '18'), ('no less than 18', '18'),
    ('18 not 19', '18'), ('eighteen or more', '18'), ('at least eighteen', '18'),
    ('over eighteen', '18'), ('18 less than 20', '18'), ('1 less than 18', '18'),
    ('one less than 18', '18'), ('18 dozen', '18'), ('18 thousand', '18'),
    ('18 percent of 50', '18'), ('18 at the most', '18'), ('up to 18 apples', '18'),
    ('at least 18 apples', '18'), ('18 apples or more', '18'), ('18 or more apples', '18'),
    ('18 apples at least', '18'), ('the number is not 18', '18'), ('fewer than 18 apples', '18'),
    (r'(18, \infty)', '18'), (r'18 \pm 1', '18'), ('18^{+}', '18'),
]  # fmt: skip

ROOT_SIGNS_EQUAL = [
    ('√12', r'2\sqrt{3}'), ('√16', '4'), ('2√10', r'2\sqrt{10}'),
    ('(1+√17)/2', r'\frac{1+\sqrt{17}}{2}'), ('√(16)', '4'), ('√(9+16)', '5'), ('∛27', '3'),
    ('∛(27)', '3'), ('∜16', '2'), ('√2.25', '1.5'), ('√ 16', '4'), ('√√16', '2'), ('√1̅6̅', '4'),
    ('√x', r'\sqrt{x}'), ('√π', r'\sqrt{\pi}'), ('3√2/2', r'\frac{3\sqrt2}{2}'), ('√{16}', '4'),
    ('√1,600', '40'), ('1/√12', r'\frac{1}{2\sqrt3}'), ('³√8', '2'), ('sqrt12', r'2\sqrt3'),
    ('sqrt(12)', r'2\sqrt{3}'), ('√50x', r'5\sqrt2x'), ('square root of 16', '4'), ('√-4', '2i'),
]  # fmt: skip
ROOT_SIGNS_DIFFERENT = [
    ('√12', '2'), ('√11', '1'), ('√16', '6'), ('√12', r'\sqrt{1}2'), ('∛27', '7'),
    (r'\sqrt12', r'2\sqrt3'), ('√10', '0'), ('√x+1', r'\sqrt{x+1}'),
]  # fmt: skip

MARKS_AND_DERIVATIVES_EQUAL = [
    ("f'(x)", "f'(x)"), ("f'(x)", r'f^{\prime}(x)'), ('A′', "A'"), ('A^T', r'A^\top'),
    ('A^T', 'A^{T}'), (r'\bar{z}', r'\overline{z}'), (r'\bar z', r'\bar{z}'),
    (r'\vec v', r'\overrightarrow{v}'), (r'\frac{dy}{dx}', 'dy/dx'),
    (r'\frac{dy}{dx}', r'\frac{\mathrm{d}y}{\mathrm{d}x}'), (r'\frac{dy}{dx}=2x', '2x'),
    ("y'=2x", "y'=x+x"), (r'\overline{3+4i}', '3-4i'), ('x_{1}+1', '1+x_1'),
    (r'\frac{d^2y}{dx^2}', r'\frac{d^2 y}{dx^{2}}'), ("5'", '5'), ('6\'2"', '74 inches'),
    ('A^{-1}', 'A^{-1}'), ("f''(x)+1", "1+f''(x)"),
]  # fmt: skip
MARKS_AND_DERIVATIVES_DIFFERENT = [
    ("f'(x)", 'f(x)'), ("f'(2)", 'f(2)'), ("A'", 'A'), ("f''(x)", "f'(x)"), ("x'", 'x'),
    ("y'=2x", 'y=2x'), (r'f^\prime(x)', 'f(x)'), (r'A^{\prime}', 'A'), ('A′', 'A'), ("A'B", 'AB'),
    ("(a',b)", '(a,b)'), ("x'+1", 'x+1'), ('A^T', 'A'), ('2^T', '2'), ('A^{T}', 'A'),
    (r'A^\top', 'A'), (r'A^{\top}', 'A'), (r'A^\dagger', 'A'), ('A^*', 'A'), ('A^{*}', 'A'),
    ('z^*', 'z'), (r'\bar{z}', 'z'), (r'\bar z', 'z'), (r'\overline{z}', 'z'),
    (r'\overline{z}+1', 'z+1'), (r'\hat{x}', 'x'), (r'\vec{v}', 'v'), (r'\hat\theta', r'\theta'),
    (r'\tilde{x}', 'x'), (r'\dot{x}', 'x'), (r'\ddot{x}', r'\dot{x}'), ('A^{-1}', 'A'),
    (r'\overline{AB}', 'AB'), ('A^H', 'A'), (r'A^{\mathsf{T}}', 'A'), (r'A^\intercal', 'A'),
    (r'\bar{A}\cup B', r'A\cup B'), (r'\neg A', 'A'), (r'\overline{12}', '12'),
    (r'\frac{dy}{dx}', '0'), (r'\frac{dy}{dx}', r'\frac{dx}{dy}'), (r'\frac{d}{dx}y', '0'),
    (r'\frac{d}{dx} y', 'y'), (r'\frac{\partial f}{\partial x}', '0'), ('dy/dx', '0'),
    ('dy/dx', 'y/x'), (r'\frac{d^2y}{dx^2}', '0'), (r'\frac{d^2y}{dx^2}', r'\frac{dy}{dx}'),
    (r'\frac{\mathrm{d}y}{\mathrm{d}x}', '0'), (r'\frac{d}{dx}(5)', '01'), (r'\dot{y}', '0'),
    (r'\nabla f', 'f'), ('f^{(2)}(x)', 'f(x)'), (r'\mathcal{A}', 'A'), ('x^+', 'x'), ('A^c', 'A'),
    ("f'", 'f'), (r'\frac{dy}{dx}=0', 'y=0'),
    (r'\frac{\partial f}{\partial x}', r'\frac{\partial f}{\partial y}'), ('x_1', 'x'),
    ('x_1', 'x_2'), ('|x|', 'x'), ('n!', 'n'), (r'\lfloor x\rfloor', 'x'), (r'\not=5', '5'),
    (r'\lim_{x\to 0}f(x)', 'f(0)'),
]  # fmt: skip

SPELLINGS_EQUAL = [
    ('1/2 or 0.5', '1/2'), ('2 hours or 120 minutes', '2 hours'), ('50% or 1/2', '1/2'),
    ('0.5 or 50%', '1/2'), (r'\frac12 \text{ or } 0.5', '0.5'),
    ('2 hours or 120 minutes', '120 minutes'), ('0.5, or 1/2', '1/2'), ('1/2, i.e. 0.5', '1/2'),
    ('1/2 = 0.5', '1/2'), ('x = 1/2 or x = 0.5', '1/2'), (r'\sqrt{8} or 2\sqrt{2}', r'2\sqrt2'),
    ('$2 or 200 cents', '$2'), ('1 or 2', '1, 2'), ('1 or 2', '2 or 1'),
]  # fmt: skip
SPELLINGS_DIFFERENT = [
    ('1 or 2', '1'), ('1 or 2', '2'), ('1/2 or 0.6', '1/2'), ('2 hours or 30 minutes', '2 hours'),
    ('2 hours or 30 minutes', '150 minutes'), ('5 or 5 or 6', '5'), ('1/2 and 0.5', '1/2'),
    ('50% or 1/3', '1/2'), ('$2 or 3 dollars', '$2'), (r'\sqrt2 or 1.5', r'\sqrt2'),
]  # fmt: skip

LATEX_FORMS_EQUAL = [
    (r'\sqrt[3]2', r'\sqrt[3]{2}'), (r'\langle 1,2\rangle', '(1,2)'),
    (r'\frac13\begin{pmatrix}3&6\\6&3\end{pmatrix}', r'\begin{pmatrix}1&2\\2&1\end{pmatrix}'),
    (r'2220_{\text{five}}', '2220_5'), (r'{10 \choose 3}', '120'),
    (r'\{1,2,3,4\}', r'\{1,3\}\cup\{2,4\}'), (r'\cfrac{1}{2}', '0.5'), (r'\binom{10}{3}', '120'),
    (r'\dbinom{5}{2}', '10'), (r'10 \choose 3', '120'), (r'{n+1 \choose 2}', r'\frac{n(n+1)}{2}'),
    (r'2\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{pmatrix}2\\4\end{pmatrix}'),
    (r'-\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{pmatrix}-1\\-2\end{pmatrix}'),
    ('1011_{two}', '1011_2'), ('2220 base 5', '2220_5'), ('2220 in base five', '2220_5'),
    ('2220_{(5)}', '2220_5'), (r'\left\langle 1, 2\right\rangle', '(1,2)'),
    (r'\begin{cases} x=1 \\ y=2\end{cases}', '(1,2)'),
    (r'\begin{cases} x=1 \\ y=2\end{cases}', 'x=1, y=2'), (r'{1 \over 2}', '1/2'),
    (r'\{1\}\cup\{2\}', '1,2'), (r'\nicefrac{1}{2}', '1/2'),
    (r'\langle 1,2\rangle, \langle 3,4\rangle', '(1,2),(3,4)'),
    (r'\begin{bmatrix}3&6\end{bmatrix}/3', r'\begin{pmatrix}1&2\end{pmatrix}'),
    (r'\mathbf{v}=\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{pmatrix}1\\2\end{pmatrix}'),
    ('5!!', '15'), ('A3F_{16}', '2623'), (r'\lbrace 1,2 \rbrace', r'\{1,2\}'),
    (r'\left(\begin{array}{cc}1&2\\3&4\end{array}\right)', r'\begin{pmatrix}1&2\\3&4\end{pmatrix}'),
]  # fmt: skip
LATEX_FORMS_DIFFERENT = [
    (r'\frac13\begin{pmatrix}3&6\\6&3\end{pmatrix}', r'\begin{pmatrix}3&6\\6&3\end{pmatrix}'),
    (r'2220_{\text{five}}', '2220'), ('2220_{six}', '2220_5'), (r'{10 \choose 3}', '10/3'),
    (r'\{1,3\}\cup\{2\}', r'\{1,2,3,4\}'), (r'\langle 1,2\rangle', '(2,1)'),
    (r'\sqrt[3]2', r'\sqrt2'), (r'\begin{cases} x=1 \\ y=2\end{cases}', '(2,1)'),
]  # fmt: skip

BRACELESS_EQUAL = [
    (r'\frac\pi2', r'\frac{\pi}{2}'), ('x^-2', 'x^{-2}'), (r'\sqrt\pi', r'\sqrt{\pi}'),
    (r'2^\frac12', r'\sqrt2'), (r'\frac1{2}', '0.5'), (r'\frac{1}2', '0.5'), (r'\binom52', '10'),
    (r'\frac xy', r'\frac{x}{y}'), (r'\frac ab', 'a/b'), (r'\frac\pi{2}', r'\pi/2'),
    (r'\frac{\pi}2', r'\pi/2'), ('e^-x', r'\frac{1}{e^x}'), (r'x^\frac{1}{2}', r'\sqrt{x}'),
    (r'\sqrt x', r'\sqrt{x}'), (r'\frac{\sqrt3}3', r'\frac{1}{\sqrt3}'), ('10^-3', '0.001'),
    ('2^-1', '0.5'), (r'\sqrt3\pi', r'\pi\sqrt{3}'), (r'2\sqrt3', r'\sqrt{12}'),
    (r'\frac 1 2', '1/2'), (r'\frac34', '0.75'), (r'-\frac\pi4', r'-\pi/4'), (r'\log_28', '3'),
    (r'\frac1x', '1/x'), (r'x^{-\frac12}', r'\frac{1}{\sqrt x}'),
    (r'\sqrt\frac12', r'\frac{\sqrt2}{2}'),
]  # fmt: skip
BRACELESS_DIFFERENT = [
    (r'\frac12', '12'), (r'\frac\pi2', r'2/\pi'), (r'\sqrt12', r'\sqrt{12}'), ('x^-2', 'x^2'),
    (r'\frac123', '1/23'), (r'\binom52', '52'),
]  # fmt: skip

FORMATTING_EQUAL = [
    (r'\textcolor{blue}{15}', '15'), (r'\large 15', '15'), (r'\color{red}15', '15'),
    (r'\color{blue}{15}', '15'), (r'{\color{red} 15}', '15'), (r'\mathbf{15}', '15'),
    (r'\bm{x}', 'x'), (r'15 \tag{1}', '15'), (r'15\phantom{00}', '15'), (r'\Huge{15}', '15'),
    (r'{\bf 15}', '15'), (r'\colorbox{yellow}{15}', '15'), (r'\fcolorbox{red}{white}{15}', '15'),
    (r'\textbf{\textcolor{red}{15}}', '15'), (r'\mathbf{x^{2}}', 'x^2'),
    (r'\boldsymbol{\frac{1}{2}}', '1/2'), (r'\textcolor[rgb]{1,0,0}{15}', '15'),
    (r'\displaystyle\frac{1}{2}', '0.5'), (r'15\quad', '15'), (r'15\,', '15'), (r'\;15\;', '15'),
    (r'\hspace{2pt}15', '15'), (r'\underline{15}', '15'), (r'\textbf{B}', 'B'),
    (r'\textcolor{blue}{\text{(B)}}', 'B'), (r'\left.15\right.', '15'), (r'\mathrm{15}', '15'),
    (r'\scriptstyle 15', '15'), (r'\textit{15}', '15'),
    (r'\textcolor{red}{-\frac{1}{2}}', '-1/2'), (r'\Large\textbf{15}', '15'),
    (r'\mathstrut 15', '15'), (r'\vphantom{x}15', '15'), (r'\bbox[yellow]{15}', '15'),
    (r'\color{green}\frac{1}{2}', '1/2'), (r'\textcolor{red}{1}\textcolor{blue}{5}', '15'),
    (r'\texttt{15}', '15'), (r'\sf 15', '15'),
]  # fmt: skip
FORMATTING_DIFFERENT = [
    (r'\textcolor{15}{16}', '15'), (r'\phantom{15}', '15'), (r'\phantom{15}16', '15'),
    (r'\tag{15}', '15'), (r'16\tag{15}', '15'), (r'\color{15}', '15'),
    (r'\textcolor{blue}{15}', '16'),
]  # fmt: skip

MATHEMATICS_EQUAL = [
    ('x^2+y^2=4', 'y^2+x^2=4'), ('3x+2y=6', r'\frac{x}{2}+\frac{y}{3}=1'), ('y=2/x', 'xy=2'),
    ('y-1=2(x-3)', 'y=2x-5'), (r'\frac{1+i}{2}', r'\frac12+\frac i2'), (r'5\text{ cm}', '5'),
    ('(x-1)(x-2)(x-3)', 'x^3-6x^2+11x-6'), (r'\frac{\sqrt{2}}{2}', r'\frac{1}{\sqrt2}'),
    (r'\sqrt{x^2}', '|x|'), (r'2\sin x\cos x', r'\sin 2x'), (r'\tan x', r'\frac{\sin x}{\cos x}'),
    (r'e^{\ln 5}', '5'), (r'\log_{3}81', '4'), (r'\ln\frac{1}{e}', '-1'), ('a^{m+n}', 'a^m a^n'),
    (r'\sqrt[3]{x^3}', 'x'), ('n!/(n-1)!', 'n'), (r'\frac{n(n+1)}{2}', r'\binom{n+1}{2}'),
    (r'(-\infty, -2) \cup (2, \infty)', 'x<-2 or x>2'), (r'x\in(2,3)', '(2,3)'),
    ('2<x<3', '(2,3)'), (r'x = \pm 2', '2, -2'), (r'\{-2,2\}', r'\pm 2'), ('x=2, x=-2', '-2,2'),
    ('x=1,y=2', '(1,2)'), (r'3\times 10^{8}', '300000000'), ('1.5e-3', '0.0015'),
    (r'\frac{3}{4}\text{ hours}', '45 minutes'), (r'\$12.50', '12.5'),
    ('12.50 dollars', '$12.50'), (r'0.1\overline{6}', '1/6'), (r'0.\bar{3}', '1/3'),
    (r'\cos\frac{\pi}{3}', '1/2'), (r'\sin 30^\circ', '0.5'), (r'\sum_{k=1}^{10} k', '55'),
    (r'\int_0^1 x\,dx', '1/2'), (r'\lim_{x\to\infty}\frac{1}{x}', '0'),
    (r'\prod_{k=1}^{4}k', '24'), ('|3-5|', '2'), (r'\lceil 2.1\rceil', '3'), (r'\max(3,5)', '5'),
    (r'\gcd(12,18)', '6'), (r'\text{lcm}(4,6)', '12'), (r'\operatorname{lcm}(4,6)', '12'),
    ('2^{3^2}', '512'), ('x^{2}', 'x^2'), (r'\frac{x+1}{x+1}', '1'), (r'7 \cdot 8', '56'),
    ('2x+1', '1+2x'), (r'\overrightarrow{AB}', r'\overrightarrow{AB}'),
    (r'(2, \frac{\pi}{3})', r'(2,\pi/3)'), (r'2 \text{ and } 3', '2,3'),
    ('1,2,3 and 4', '1,2,3,4'), ('k=3', '3'), (r'\frac{a}{b}', 'a/b'),
    ('a/b+c/d', r'\frac{ad+bc}{bd}'), ('-x+1', '1-x'), ('(x+y)^2', 'x^2+2xy+y^2'),
    (r'\sqrt{3}i', r'i\sqrt3'), (r'e^{i\pi/2}', 'i'), ('z=3+4i', '3+4i'), (r'2\pi r', r'2r\pi'),
    (r'\pi r^2 h', r'\pi hr^2'), (r'\frac{1}{2}bh', 'bh/2'), ('1/2 bh', r'\frac{bh}{2}'),
    (r'x\ge3', r'[3,\infty)'), (r'\frac{2x}{2}', 'x'), ('100_{10}', '100'),
    (r'\text{Yes}', 'yes'), (r'\mathrm{(C)}', 'C'), (r'\frac{7}{2}', r'3\frac{1}{2}'),
    ('3 1/2', '7/2'), ('1 hour 30 minutes', '90 minutes'), ('1.5 hours', '90 min'),
    (r'\theta=\frac{\pi}{4}', r'\frac{\pi}{4}'), (r'\sqrt{2}:1', r'\sqrt{2}:1'),
    (r'\begin{vmatrix}1&2\\3&4\end{vmatrix}', r'\begin{vmatrix}1&2\\3&4\end{vmatrix}'),
    ("y' = 3x", '3x'), ('(3,4]', '(3, 4]'), (r'\left(-1,\frac12\right)', '(-1,0.5)'),
    (r'13\%', '13%'), (r'\frac{1}{3}\%', r'\frac{1}{3}%'), ('3.0', '3'), ('1{,}000', '1000'),
    (r'\dfrac{\sqrt{5}-1}{2}', r'\frac{-1+\sqrt5}{2}'),
    (r'\text{All real numbers}', r'(-\infty,\infty)'),
    (r'f^{-1}(x)=\frac{x-1}{2}', r'\frac{x-1}{2}'), (r'\log_2(3)', r'\frac{\ln 3}{\ln 2}'),
    (r'\log 100', '2'), (r'\arctan(1)', r'\pi/4'), (r'\sin^{-1}(1)', r'\frac{\pi}{2}'),
    (r'\cosh 0', '1'), (r'\frac{d}{2}', 'd/2'), ('ad-bc', '-bc+ad'),
    (r'\frac{ad}{bc}', 'ad/(bc)'), ('dx', 'xd'), ('a_n = 2n+1', '2n+1'), ('a_{n}=3^{n}', '3^n'),
    (r'S_n=\frac{n}{2}(a_1+a_n)', r'\frac{n(a_1+a_n)}{2}'), ('x_1=1,x_2=2', '1,2'),
    ('(x_1,x_2)=(1,2)', '(1,2)'), ('P(A)=0.3', '0.3'), (r'P(A\cap B)=0.3', '0.3'),
    (r'\angle ABC = 30^\circ', '30'), ('AB=5', '5'), (r'\triangle ABC', r'\triangle ABC'),
    (r'm\angle A=40', '40'), (r'4\text{th}', '4'), ('4th', '4'), (r'\$3 million', '3000000'),
    ('$5', '5 dollars'), (r'2\frac12', '2.5'), (r'-\frac{1}{2}', '-0.5'),
    (r'\frac{-1}{2}', r'-\frac12'), (r'\sqrt{\frac{1}{2}}', r'\frac{\sqrt{2}}{2}'),
    (r'2\cos^2x-1', r'\cos 2x'), (r'1 - \ln 2', r'1-\ln(2)'), (r'\ln2-1', r'\ln 2 - 1'),
    (r'\frac{\ln 3}{2}', r'\ln\sqrt3'), (r'x\ln x - x', r'x(\ln x-1)'),
    (r'\frac{1}{x}+C', 'C+1/x'), ('3x^2 + C', '3x^2+C'), (r'\sqrt[3]{-8}', '-2'), ('½bh', 'bh/2'),
    ('2½', '2.5'), ('(-8)^{1/3}', '-2'), ('x^{1/3}', r'\sqrt[3]{x}'), ('2½x', '5x/2'),
    (r'\lim_{x\to 0}f(x)', r'\lim_{x\to 0}f(x)'),
    (r'x \in (-\infty, -1] \cup [3, \infty)', r'(-\infty,-1]\cup[3,\infty)'),
    (r'\left[ -\frac{1}{2}, 3 \right]', '[-1/2,3]'),
    (r'\left\{ \frac{-1+\sqrt{5}}{2}, \frac{-1-\sqrt5}{2} \right\}', r'\frac{-1\pm\sqrt{5}}{2}'),
    (r'x=\frac{-1\pm\sqrt{5}}{2}', r'\frac{-1\pm\sqrt5}{2}'), (r'\text{The answer is } 5', '5'),
    (r'\text{Area} = 25\pi', r'25\pi'), (r'\text{Total: } 15', '15'),
    (r'15 \text{ (minutes)}', '15'), (r'15\ \text{min}', '15'), (r'\text{15}', '15'),
    (r'15\text{ cm}^2', '15'), (r'15\mathrm{~cm}', '15'), (r'15~\mathrm{km/h}', '15'),
    (r'15\,\text{m/s}^2', '15'), (r'\mathrm{15~kg}', '15'), (r'\$15.00', '15'),
    (r'15\text{ dollars}', '15'), ('USD 15', '15'), ('15 USD', '15'), ('Rs. 15', '15'),
    ('€15', '15'), ('15€', '15'), ('15 euros', '€15'), (r'0.15\text{ or }15\%', '15%'),
    ('15:00', '3 p.m.'), (r'\overline{AB}=5', '5'), (r'\angle A = 30^{\circ}', r'30^\circ'),
    (r'30^{\circ}', '30'), (r'\frac{\pi}{6}\text{ radians}', r'\frac{\pi}{6}'),
    (r'1,2,\ldots,10', r'1,2,\ldots,10'), (r'\{1,2,\dots,10\}', r'\{1,2,\dots,10\}'),
    (r'2n\pi', r'2\pi n'), (r'x=2n\pi, n\in\mathbb{Z}', r'x=2n\pi, n\in\mathbb{Z}'),
    (r'\frac{n!}{k!(n-k)!}', r'\binom{n}{k}'), (r'\binom{n}{2}', r'\frac{n(n-1)}{2}'),
    ('n^2+n', 'n(n+1)'), ('O(n^2)', 'O(n^2)'),
    (r'\mathcal{O}(n\log n)', r'\mathcal{O}(n \log n)'), ('(2,3)', 'x=2,y=3'),
    ('(x,y)=(2,3)', r'x=2 \text{ and } y=3'), (r'x=2\text{ and }y=3', '(2,3)'),
    ('a=1,b=2,c=3', '(1,2,3)'), ('(1,2,3)', 'a=1,b=2,c=3'),
    (r'\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{bmatrix}1\\2\end{bmatrix}'),
    (r'1+\frac{1}{2}+\frac{1}{3}', r'\frac{11}{6}'), (r'\frac{2^{10}-1}{2-1}', '1023'),
    ('3^{100}', '3^{100}'), ('10!', '3628800'), (r'\frac{10!}{3!7!}', '120'), ('100!', '100!'),
    ('2^{1000}', '2^{1000}'), ('2^{100000}', '2^{100000}'),
    (r'e^{2\pi i/3}', r'-\frac12+\frac{\sqrt3}{2}i'),
    (r'\operatorname{cis} 60^\circ', r'\operatorname{cis} 60^\circ'),
    (r'\cot x', r'\frac{1}{\tan x}'), (r'\sec^2 x', r'1+\tan^2 x'),
    (r'\arcsin\frac12', r'\frac{\pi}{6}'), (r'\log_a b', r'\frac{\ln b}{\ln a}'),
    (r'\ln|x|+C', r'\ln |x|+C'), (r'-\cos x + C', r'C-\cos x'),
    (r'\frac{x^3}{3}+C', r'\frac13x^3+C'), ('y=Ce^{-x}', 'y=Ce^{-x}'),
    ('y = C e^{2x}', 'y=Ce^{2x}'), (r'y=\frac{1}{x+1}', 'y=(x+1)^{-1}'), ('f(x)=x^2-1', 'x^2-1'),
    ('f(x) = (x-1)(x+1)', 'f(x)=x^2-1'), (r'\sqrt{17}\text{ units}', r'\sqrt{17}'),
    (r'5\sqrt{2} cm', r'5\sqrt2'), (r'4\pi\text{ square units}', r'4\pi'),
    (r'10 \text{ in}^2', '10'), ('10 sq. ft.', '10'), ('10 ft', '10'),
    ('3 feet 4 inches', '40 inches'), (r'\text{Monday}', 'Monday'), ('Monday.', 'Monday'),
    ('the Monday', 'Monday'), ('blue', 'Blue'), ('Carol', 'carol'), (r'\text{Evelyn}', 'Evelyn'),
    (r'\text{odd}', 'odd'), ('isosceles', 'isosceles'), ('no', 'No'), ('NO', 'no'),
    ('true', 'True'), ('infinitely many', r'\text{infinitely many}'), ('DNE', 'does not exist'),
    (r'\text{undefined}', 'undefined'), ('AB', 'AB'), ('ABC', 'ABC'),
    ('ellipse', r'\text{ellipse}'), ('3x+2=0', '3x+2=0'), ('3x+2=0', r'x=-\frac23'),
    ('x^2-5x+6=0', 'x^2-5x+6=0'), ('x^2+y^2-4x=0', '(x-2)^2+y^2=4'),
    (r'\frac{x^2}{9}+\frac{y^2}{4}=1', '4x^2+9y^2=36'), ('y > 2x+1', '2x+1 < y'),
    (r'x+y \le 5', r'5\ge x+y'), (r'-2 < x \leq 3', '(-2,3]'), ('(-2, 3]', r'-2<x\le3'),
    (r'x \neq 3', r'x\ne 3'), ('x > 0, y > 0', 'x>0, y>0'), ('1:2', '1:2'), ('1 : 2', '1/2'),
    ('1/2', '1:2'), ('2:1:3', '4:2:6'), (r'\frac{3}{5}', '0.6'), (r'60\%', '0.6'), ('three', '3'),
    ('Twelve', '12'), ('one hundred', '100'), ('a dozen', '12'), ('3 dozen', '36'),
    ('two-thirds', '2/3'), ('one half', '1/2'), ('5th', '5'), ('5', '5'), ('-7', '−7'),
    ('$-7$', '-7'), ('+7', '7'), ('7.', '7'), ('7.0', '7'), ('07', '7'), ('7,000', '7000'),
    ('7 000', '7000'), ('7e3', '7000'), ('1.2345678', '1.2345678'), (r'\approx 3.14', '3.14'),
    ('1', '1'), (r'\text{A and B}', 'A, B'), ('A, B, D', 'A, B, and D'), ('ABD', 'ABD'),
    (r'\text{(A), (C)}', 'A, C'), (r'\mathbb{N}', r'\mathbb{N}'), (r'\mathbb R', r'\mathbb{R}'),
    (r'\mathbb{R}\setminus\{0\}', r'\mathbb{R}\setminus\{0\}'),
    (r'\mathbf{i}+2\mathbf{j}', r'\mathbf{i}+2\mathbf{j}'),
    (r'\hat{i}+2\hat{j}', r'\hat{i}+2\hat{j}'), (r'\vec{a}+\vec{b}', r'\vec b+\vec a'),
    (r'|\vec{a}|=3', '3'), (r'\|v\|=3', '3'), (r'\sigma^2=4', '4'), (r'\mu = 3', '3'),
    (r'p \land q', r'p \land q'), ('2^{-3}', '1/8'), (r'\left(\frac{1}{2}\right)^3', '1/8'),
    ('(x+1)^{2}', '(1+x)^2'), (r'\sqrt{5}', r'\sqrt 5'), (r'\sqrt{5}', '5^{0.5}'),
    (r'2\sqrt[3]{4}', r'\sqrt[3]{32}'), (r'\dfrac{2}{\sqrt{3}}', r'\frac{2\sqrt3}{3}'),
    (r'\frac{\sqrt{2}+\sqrt{6}}{4}', r'\sin 75^\circ'), (r'i\sqrt{2}', r'\sqrt{2}i'),
    (r'\sqrt{-2}', r'i\sqrt2'), ('-i', '-i'), ('a^2-b^2', '(a-b)(a+b)'), ('p^2q', 'qp^2'),
    ('k', 'k'), (r'\lambda=2', '2'), ('T_n', 'T_n'), (r'\Delta ABC', r'\Delta ABC'), ("x'", "x'"),
    (r'5,\!000', '5000'), ('12{,}345', '12345'), ('{5}', '5'), ('(5)', '5'), ('[5]', '[5]'),
    (r'\{5\}', '5'), (r'5\%', '5'), (r'\left(5\right)', '5'), (r'\frac{5}{1}', '5'),
    (r'\displaystyle 5', '5'), ('5 ', '5'), ('5\n', '5'), (r'\quad 5', '5'), ('=5', '5'),
    ('is 5', '5'), (r'\therefore x=5', '5'), (r'\Rightarrow 5', '5'), ('∴ x = 5', '5'),
    (r'\text{So } x=5', '5'), (r'x = 5 \text{ cm}', '5'), (r'5\text{ apples}', '5'),
    ('five', '5'), ('12:30 a.m.', '00:30'), ('6:00:00', '6:00'), ('18:00', '6:00 p.m.'),
    (r'6:00\text{ a.m.}', '6:00 AM'), ('(A) No', 'A'), ('(B) no solution', 'B'),
    ('(C) Not enough information', 'C'), ('(A) cannot be determined', 'A'), ('(B) False', 'B'),
    ('(A) is correct', 'A'), ('Options A and B', 'A, B'), ('5√8 cm', r'10\sqrt2'),
    ('√144 = 12', '12'), (r'\{1,2,...,10\}', r'\{1,2,\ldots,10\}'), (r'1,2,\dots', r'1,2,\ldots'),
    (r'x\equiv 3\pmod{7}', r'x \equiv 3 \pmod 7'), (r'\Delta y', r'\Delta y'),
    (r'\frac{\Delta y}{\Delta x}', r'\frac{\Delta y}{\Delta x}'),
    ('2 hours = 120 minutes', '2 hours'), (r'0.5 = 1/2 = 50\%', '0.5'), (r'\max(3,18)', '18'),
    ('USD 15', '$15'), ('18个', '18'),
]  # fmt: skip
MATHEMATICS_DIFFERENT = [
    ('x^2+y^2=4', 'x^2+y^2=2'), ('y=2x', 'y=2x+1'), ('x<3', 'x>3'), (r'x\le3', 'x<3'),
    ('2x<6', 'x<3.1'), ('-2x<6', 'x<-3'), ('x=x', 'y=y'), ('0=0', '1=1'), ('x=x', '5=5'),
    ('x-x=0', 'y=2x+1'), ('0', 'x-y'), ('(x-y)^2', 'x^2-y^2'), (r'\sqrt{x^2}', 'x'),
    (r'\ln(xy)', r'\ln x\ln y'), ('2^{x+1}', '2^x+1'), (r'\sin x^2', r'\sin^2 x'),
    ('1/(2x)', 'x/2'), ('a-b', 'b-a'), ('i', '1'), ('3+4i', '5'), ('x=5', 'y=5'),
    ('f(x+1)', 'f(x)+1'), ('g(f(x))', 'f(g(x))'), ('P(A)+P(B)', 'P(A+B)'), (r'\int x dx', 'x'),
    (r'\lim_{x\to 0} f(x)', 'f(x)'), ('[0,1]', r'\{0,1\}'), ('(0,1)', '[0,1]'),
    (r'\{1,2\}', '(1,2)'), (r'\emptyset', '0'), (r'\{\}', '0'), (r'\{0\}', r'\emptyset'),
    ('()', '0'), (r'\{\}', r'\{1\}'), ('[]', '5'), ('(,)', '(1,2)'), ('', '5'), ('$', '5'),
    (r'\frac{}{}', '0'), (r'\sqrt{}', '0'), ('+', '0'), ('-', '0'), ('.', '0'), ('0x', 'x'),
    (r'0\cdot x', 'x'), ('x^0', '0'), ('5x', '5'), ('5+x-x+1', '5'), (r'\text{five or six}', '5'),
    ('5 6', '56'), ('5,6', '56'), ('5;6', '5'), ('5/6', '5'), (r'5\\6', '5'), (r'5 \quad 6', '5'),
    (r'5 \quad 6', '56'), ('5|6', '5'), ('5&6', '5'), (r'5\text{ or }6', '5'), ('5 vs 6', '5'),
    ('5 (or 6)', '5'), ('5 (6)', '5'), ('5 [6]', '5'), ('5 {6}', '5'), ('5? 6?', '5'),
    ('5...6', '5'), ('5-6', '5'), ('5–6', '5'), ('5 to 6', '5'), ('between 5 and 6', '5'),
    ('5 < x < 6', '5'), ('5 and 6', '6'), ('{5,6}', '5'), ('x=5 or 6', '5'), ('x=5, x=6', '6'),
    (r'x \in \{5,6\}', '5'), (r'5\ne 6', '6'), (r'6 \ne 5', '6'), (r'5 \to 6', '6'),
    (r'5 \rightarrow 6', '6'), (r'5 \Rightarrow 6', '6'), (r'5 \equiv 6', '6'),
    (r'5 \pmod 6', '5'), (r'5 \mod 6', '5'), (r'5 \sim 6', '6'), (r'5 \cong 6', '6'),
    (r'5 \propto 6', '6'), (r'5 \ll 6', '6'), ('5: 6', '5'), ('5 = 6', '6'), ('5 == 6', '6'),
    ('5 := 6', '6'), (r'5 \overset{?}{=} 6', '6'), (r'5 \cup 6', '5'), (r'5 \cap 6', '5'),
    (r'\{5\} \cup \{6\}', '5'), (r'\frac{5}{1} \text{ or } 6', '6'), (r'\{5\}\cap\{5\}', '6'),
    (r'\boxed{5}\boxed{6}', '5'), ('a=5,b=6', '5'), (r'5\pm1', '5'), (r'5\pm 0', '5'),
    (r'5^\circ', r'5\pi'), ('5 apples', '5 oranges'), ('5 km', '5 miles'), ('5%', '500'),
    ('0.05', '5'), ('0.5', '0.05'), ('nan', '0'), ('None', '0'), ('null', '0'),
    ('undefined', '1/2'), (r'\infty', '1'), (r'-\infty', r'\infty'), (r'+\infty', r'-\infty'),
    (r'(-\infty,\infty)', r'(0,\infty)'), (r'\infty-\infty', '0'), (r'2\infty', r'\infty'),
    (r'\frac{1}{\infty}', '0'), ('0^0', '1'), ('x^x', '1'), (r'\frac{0}{0}', '1'),
    (r'\frac{0}{0}', '0'), (r'\frac{x-x}{y-y}', '0'), ('(x-x)^0', '1'), ('0!', '0'),
    (r'\arcsin 2', '2'), (r'\sqrt{-1}', '-1'), (r'\sqrt{-1}', '1'), (r'\log(-1)', '1'),
    (r'\ln(-1)', '0'), ('(-1)!', '1'), (r'\Gamma(0)', '1'), (r'\zeta(1)', '1'),
    (r'\zeta(-1)', '-1/12'), (r'\sum_{n=1}^\infty n', '-1/12'),
    (r'\sum_{n=0}^\infty (-1)^n', '1/2'), (r'\sum_{n=0}^\infty 2^n', '-1'),
    (r'\int_{-1}^1 \frac{1}{x}dx', '0'), (r'\int_{-1}^1\frac{1}{x^2}dx', '-2'),
    (r'\int_0^\infty \sin x dx', '1'), (r'\lim_{x\to 0}\frac{|x|}{x}', '1'),
    (r'\prod_{n=1}^\infty 2', '0'), (r'\tan 90^\circ', '0'), (r'\tan\frac{3\pi}{2}', '1'),
    (r'\csc\pi', '0'), (r'\log_1 1', '1'), (r'\log_0 0', '1'), (r'\log_2 0', '0'),
    (r'\frac{1}{\sin\pi}', '0'), (r'\frac{1}{\sqrt{2}-\sqrt2}', '0'),
    (r'\frac{0}{\sin^2x+\cos^2x-1}', '0'), (r'\frac{5(x-x)}{x-x}', '5'),
    (r'\frac{5\cdot 0}{0}', '5'), (r'5+\frac{0}{0}', '5'), (r'5\cdot\frac{0}{0}', '5'),
    (r'5\cdot 1^{\infty}', '5'), (r'5+0\cdot\infty', '5'), (r'\max(5,\infty)', '5'),
    (r'\min(5,\infty)', '5'), (r'\min(5,1/0)', '5'), (r'\max(5,-\infty)', '5'),
    (r'\lfloor 1/0\rfloor', '0'), (r'|\infty|', r'\infty'), (r'e^{-\infty}', '0'),
    (r'\arctan\infty', r'\pi/2'), (r'\tanh\infty', '1'), (r'\binom{5}{1/0}', '0'),
    (r'5 + x\cdot 0', '6'), (r'\det A', 'A'), ('A', 'a1'), ('sin', 'cos'), ('hello', 'world'),
    ('x_5', '5'), ('x^5', '5'), ('5_{10}', '6'), (r'5^{\text{th}}', '6'), ('five six', '5'),
    ('5 six', '5'), (r'\sum_{n=1}^3 f(n)', '3f(n)'), ('max 18', '18'), (r'\max(18)', '18'),
    ('18以上', '18'), ('至少18', '18'), ('至少 18', '18'), ('18 или больше', '18'),
    (r'\frac{\Delta y}{\Delta x}', 'y/x'), (r'\frac{\delta y}{\delta x}', r'\frac yx'),
    ('f^{-1}(x)', 'f(x)'), ('{}^tA', 'A'), (r'\text{tr}A', 'A'), ('6:00:00', '5:00:00'),
    ('12:00 AM', '12:00 PM'), ('6:00 and 8:00', '3:00 and 4:00'), ('6{:}00', '5{:}00'),
    ('7:05', '14:10'), ("(x',y')", '(x,y)'), ('(A) is not the answer', 'A'),
    ('(A) or maybe (C)', 'A'), ('Either (A) or (B)', 'A'), ('A (or B)', 'A'), ('(A)?', 'B'),
    ('A ∨ B', 'A'), ('(A) wrong', 'A'), ('x^{**}', 'x'), ('18?', '18'), ('18 ↑', '18'),
    (r'\min\{18\}', '18'), ('18 i.e. 19', '18'), (r'\lim 18', '18'), (r'A\text{ or }B', 'A'),
    ('(B), not (A)', 'A'), ('not (A) but (B)', 'A'), (r'\sup 18', '18'), ('5 or so', '5'),
    ('5ish', '5'), ('5 - 6', '5'), (r'\frac{1}{2} \text{ or more}', '1/2'),
    (r'more than \frac{1}{2}', '1/2'), (r'at least $\frac12$', '1/2'), ('less than x', 'x'),
    ('not x+1', 'x+1'), (r'\neg x', 'x'), (r'at most \sqrt2', r'\sqrt2'),
    (r'\sqrt{2} or more', r'\sqrt{2}'), (r'over \pi', r'\pi'), (r'18 \text{ or more}', '18'),
    (r'\text{at least }18', '18'), (r'\text{not }18', '18'), (r'\geq 18', '18'),
    (r'18\leq', '18'), (r'\gtrsim 18', '18'), ('>18', '18'), (r'x\ge 18', '18'),
    (r'\lnot 18', '18'), ('18^+', '18'), ('18_{+}', '18'), (r'18\uparrow', '18'),
    (r'\overline{18}', '18'), (r'\cancel{18}', '18'), (r'\not 18', '18'),
    (r'18\text{ is wrong}', '18'), (r'\xcancel{18}', '18'), (r'\sout{18}', '18'),
    (r'\st{18}', '18'), (r'18\%', '0.0018'), ('(18)!', '18'), ('18!', '18'), ('-18', '18'),
    ('--18', '-18'), ('18^{-1}', '18'), ('18^2', '18'), ('18i', '18'), ('|−18|', '-18'),
]  # fmt: skip

KINDS = {
    'times_of_day': (TIMES_OF_DAY_EQUAL, TIMES_OF_DAY_DIFFERENT),
    'letter_case': (LETTER_CASE_EQUAL, LETTER_CASE_DIFFERENT),
    'options': (OPTIONS_EQUAL, OPTIONS_DIFFERENT),
    'approximations': (APPROXIMATIONS_EQUAL, APPROXIMATIONS_DIFFERENT),
    'scripts': (SCRIPTS_EQUAL, SCRIPTS_DIFFERENT),
    'bounds': (BOUNDS_EQUAL, BOUNDS_DIFFERENT),
    'root_signs': (ROOT_SIGNS_EQUAL, ROOT_SIGNS_DIFFERENT),
    'marks_and_derivatives': (MARKS_AND_DERIVATIVES_EQUAL, MARKS_AND_DERIVATIVES_DIFFERENT),
    'spellings': (SPELLINGS_EQUAL, SPELLINGS_DIFFERENT),
    'latex_forms': (LATEX_FORMS_EQUAL, LATEX_FORMS_DIFFERENT),
    'braceless': (BRACELESS_EQUAL, BRACELESS_DIFFERENT),
    'formatting': (FORMATTING_EQUAL, FORMATTING_DIFFERENT),
    'mathematics': (MATHEMATICS_EQUAL, MATHEMATICS_DIFFERENT),
}


@pytest.mark.parametrize('kind', list(KINDS))
def test_verdicts(kind):
  equal, different = KINDS[kind]
  pairs = [*equal, *different]
  verdicts = math_answer.grade_batch(
      [f'\\boxed{{{answer}}}' for answer, _ in pairs], [truth for _, truth in pairs])
  wanted = [True] * len(equal) + [False] * len(different)
  wrong = [pair for pair, verdict, right in zip(pairs, verdicts, wanted) if verdict != right]
  assert not wrong, wrong


@pytest.mark.parametrize('kind', list(KINDS))
def test_verdicts_are_symmetric(kind):
  # What the symbolic comparison decides is symmetric by construction; the rest costs nothing.
  for answer, truth in (pair for pairs in KINDS[kind] for pair in pairs):
    assert _fast(answer, truth) == _fast(truth, answer), (answer, truth)


def _fast(candidate, answer):
  try:
    return equivalence.compare(candidate, answer)
  except equivalence.Undecided:
    return None
